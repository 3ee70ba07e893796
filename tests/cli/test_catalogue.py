"""`python -m cifar_dist models`, `recipes` and `summary`."""

from functools import cache

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cifar_dist.__main__ import COMMANDS, main
from cifar_dist.cli.recipes import option_words
from cifar_dist.cli.summary import Layer, summarize
from cifar_dist.config import TrainConfig
from cifar_dist.models import MODELS, build_model, default_options
from cifar_dist.options import OneLineParser, add_flags
from cifar_dist.recipes import RECIPES, models_of


@pytest.fixture(autouse=True)
def _one_thread():
    """Single images gain nothing from more, and lose much where other work holds the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def output(capsys, monkeypatch):
    """What a command prints on a terminal or pipe of so many columns."""

    def run(command: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(command.split()) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        return captured.out

    return run


def rows(listing: str) -> dict[str, str]:
    """First word -> the row's text, all spaces single; an empty line ends a row."""
    blocks = "\n".join(line.strip() for line in listing.splitlines()).split("\n\n")
    return {block.split()[0]: " ".join(block.split()) for block in blocks[1:]}


def parameters(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_model(name).parameters())


# ---- models


def test_every_model_is_listed_with_its_parameters_options_and_recipes(output):
    table = rows(output("models"))
    assert list(table) == list(MODELS)
    for name, text in table.items():
        assert f" {parameters(name):,} " in text
        for option in default_options(name):
            assert f"{option}=" in text
        for recipe in RECIPES:
            if "/" not in recipe:
                assert (f" {recipe} " in f"{text} ") == (name in models_of(recipe)), recipe


def test_models_shows_aliases_published_accuracies_and_one_line_for_a_whole_table(output):
    table = rows(output("models"))
    assert "or resnet " in table["resnet20"]
    assert "he2016 91.25 %" in table["resnet20"]
    assert "he2016 93.57 %" in table["resnet110"]
    assert "li2024 61 %" in table["lenet"]
    assert "zhang 72.5 %" in table["zhang"]
    assert "ghasemi2024 84 %" in table["ghasemi"]
    assert "ghasemi2024/1 to 15" in table["ghasemi"]
    assert table["ghasemi"].count("%") == 1
    assert "convolutions=5 linear_layers=3 dropout=0.2 batch_norm=yes" in table["ghasemi"].replace(
        " ghasemi2024/1 to 15", ""
    )
    assert "%" not in table["resnet18"]


def test_a_model_is_what_its_docstring_says_without_the_number_of_parameters(output):
    table = rows(output("models", columns=300))
    for name, text in table.items():
        assert (MODELS[name].__doc__ or "").partition(";")[0] in text
        assert "parameters" not in text


# ---- recipes


def test_every_recipe_is_listed_with_its_models_and_published_accuracies(output):
    table = rows(output("recipes", columns=200))
    assert list(table) == list(RECIPES)
    for name in list(RECIPES)[1:]:
        assert all(model in table[name].split() for model in models_of(name))
    assert table["default"].endswith(" all")
    assert table["he2016"] == (
        "he2016 He, Zhang, Ren, Sun 2016, §4.2. resnet20 91.25 % resnet32 92.49 % resnet44 92.83 % resnet56 93.03 % "
        "resnet110 93.57 %"
    )
    assert table["ghasemi2024/15"].endswith("20 epochs, batch norm). ghasemi 84 %")
    assert table["pandey2020"].endswith("Gives no number in %. pandey som")


@pytest.mark.parametrize("command", ["models", "recipes", "recipes he2016", "recipes ghasemi2024/14"])
def test_nothing_is_cut_off_or_wider_than_80_columns(output, command):
    text = output(command)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("name", RECIPES)
def test_one_recipe_is_printed_with_its_whole_docstring(output, name):
    assert " ".join((RECIPES[name].__doc__ or "").split()) in " ".join(output(f"recipes {name}").split())


def test_a_recipe_is_resolved_for_the_model_that_is_asked_for(output):
    assert "--warmup" not in output("recipes he2016")
    assert output("recipes he2016 --model resnet110").endswith(
        "What it sets for resnet110, as options of train.py:\n  --model resnet110\n  --recipe he2016\n  --steps 64000\n"
        "  --weight-decay 0.0001\n  --decay-all\n  --schedule multistep\n  --warmup 0.00625\n"
    )
    assert "  --augment none\n" in output("recipes li2024")


@pytest.mark.parametrize(("name", "model"), [(name, model) for name in RECIPES for model in models_of(name)])
def test_the_printed_options_give_the_recipes_configuration(name, model):
    config = RECIPES[name](model)
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    assert TrainConfig(**parser.parse([word for words in option_words(config) for word in words])) == config


# ---- summary


@cache
def measured(name: str, batch_size: int = 1) -> tuple[list[Layer], int]:
    """A model's rows, and the operations that a counter around it all has seen (two a multiply-accumulate)."""
    with FlopCounterMode(display=False) as counter:
        layers = summarize(build_model(name), batch_size)
    return layers, counter.get_total_flops()


def layers_of(name: str, batch_size: int = 1) -> list[Layer]:
    return measured(name, batch_size)[0]


def total_macs(name: str) -> int:
    return sum(layer.macs for layer in layers_of(name))


# By hand, from the layers' sizes: output pixels x output channels x the inputs of one of them.
MACS = {
    "lenet": 28 * 28 * 6 * 75 + 10 * 10 * 16 * 150 + 400 * 120 + 120 * 84 + 84 * 10,
    "ghasemi": 9 * (32 * 32 * 3 * 32 + 16 * 16 * (32 * 64 + 64 * 128 + 128 * 256 + 256 * 512))
    + 2048 * 512 + 512 * 256 + 256 * 10,
    "som": 400 * 3072,
    "resnet20": 9 * (32 * 32 * (3 * 16 + 6 * 16 * 16) + 16 * 16 * (16 * 32 + 5 * 32 * 32) + 8 * 8 * (32 * 64 + 5 * 64 * 64))
    + 64 * 10,
}  # fmt: skip


@pytest.mark.parametrize("name", MACS)
def test_multiply_accumulates_are_as_computed_by_hand(name):
    assert total_macs(name) == MACS[name]


def test_resnet20_has_the_published_41_million_multiply_accumulates():
    assert (
        MACS["resnet20"] == 40_550_400 + 640
    )  # He et al. 2016 give the count for ImageNet only; 41 M is commonly quoted


@pytest.mark.parametrize("name", MODELS)
def test_the_rows_add_up_to_the_models_parameters_and_to_all_that_is_counted(name):
    assert sum(layer.parameters for layer in layers_of(name)) == parameters(name)
    assert 2 * total_macs(name) == measured(name)[1]
    assert all(layer.macs >= 0 for layer in layers_of(name))


@pytest.mark.parametrize("name", ["lenet", "ghasemi", "som", "zhang", "mlp", "resnet20"])
def test_twice_the_batch_is_twice_the_multiply_accumulates_in_every_row(name):
    for one, two in zip(layers_of(name), layers_of(name, 2), strict=True):
        assert (two.macs, two.parameters) == (2 * one.macs, one.parameters)
        assert two.shape == (2, *one.shape[1:])


def test_lenets_rows_are_its_layers_in_order():
    assert [(layer.name, layer.kind, layer.shape) for layer in layers_of("lenet", 2)] == [
        ("conv1", "Conv2d 3->6 5x5", (2, 6, 28, 28)),
        ("relu1", "ReLU", (2, 6, 28, 28)),
        ("pool1", "MaxPool2d 2", (2, 6, 14, 14)),
        ("conv2", "Conv2d 6->16 5x5", (2, 16, 10, 10)),
        ("relu2", "ReLU", (2, 16, 10, 10)),
        ("pool2", "MaxPool2d 2", (2, 16, 5, 5)),
        ("flatten", "Flatten", (2, 400)),
        ("fc1", "Linear 400->120", (2, 120)),
        ("relu3", "ReLU", (2, 120)),
        ("fc2", "Linear 120->84", (2, 84)),
        ("relu4", "ReLU", (2, 84)),
        ("fc3", "Linear 84->10", (2, 10)),
    ]


def test_a_module_that_computes_something_itself_has_a_row_besides_those_inside_it():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.mix = nn.Parameter(torch.ones(3072)), nn.Parameter(torch.ones(4, 5))
            self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3072, 4), nn.Linear(4, 4))])
            self.unused = nn.Linear(2, 2)

        def forward(self, images):
            return self.blocks[0](images.flatten(1) * self.scale) @ self.mix

    assert summarize(Mixed(), 3) == [
        Layer("", "Mixed", (3, 5), 3072 + 20, 3 * 4 * 5),
        Layer("blocks.0.0", "Linear 3072->4", (3, 4), 3073 * 4, 3 * 3072 * 4),
        Layer("blocks.0.1", "Linear 4->4", (3, 4), 20, 3 * 16),
        Layer("unused", "Linear 2->2", None, 6, 0),
    ]


def test_a_summary_prints_a_line_a_layer_and_the_totals_however_narrow_the_terminal(output):
    lines = [line.split() for line in output("summary lenet", columns=20).splitlines()]
    assert lines[:3] == [
        ["lenet"],
        ["layer", "type", "output", "parameters", "MACs"],
        ["conv1", "Conv2d", "3->6", "5x5", "1x6x28x28", "456", "352,800"],
    ]
    assert lines[14:16] == [[], ["total", "62,006", "651,720"]]
    assert "take 0.25 MB as float32" in output("summary lenet")
    wide = output("summary resnet50", columns=40)
    assert "layer4.0.downsample.0  Conv2d 1024->2048 1x1 /2  1x2048x4x4    2,097,152     33,554,432\n" in wide


def test_a_summary_takes_the_model_and_its_settings_from_a_recipe(output):
    text = output("summary --recipe ghasemi2024/14")
    assert text.startswith("ghasemi batch_norm=yes convolutions=8 dropout=0.2 linear_layers=3\n")
    assert [text.count(kind) for kind in ("Conv2d", "BatchNorm2d", "Dropout 0.2", "Linear")] == [8, 8, 1, 3]
    other = output("summary ghasemi --recipe ghasemi2024/14 --model-options dropout=0 convolutions=2")
    assert [other.count(kind) for kind in ("Conv2d", "BatchNorm2d", "Dropout", "Linear")] == [2, 2, 0, 3]


def test_a_summary_takes_aliases_and_other_numbers_of_classes_and_images(output):
    assert output("summary resnet --num-classes 7 --batch_size 4").startswith("resnet20\n")
    assert "Linear 64->7" in output("summary --model resnet --num-classes 7 --batch-size 4")
    assert "(itself)  Som   4x7" in output("summary som --num-classes 7 --batch-size 4")


# ---- what users get wrong


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("model", "unknown command 'model'. Did you mean 'models'?"),
        ("models lenet", "unexpected argument 'lenet'"),
        ("models --sort", "unknown option '--sort'"),
        ("recipes he2015", "unknown recipe 'he2015'. Did you mean 'he2016'?"),
        ("recipes li2024 --model mlp", "recipe li2024 is for lenet, not mlp"),
        ("recipes --model mlp", "--model mlp needs a recipe: python -m cifar_dist recipes NAME --model MODEL"),
        ("recipes li2024 zhang", "unexpected argument 'zhang'"),
        ("summary", "which model? Give a name, such as summary lenet, or --recipe NAME"),
        ("summary resnet81", "unknown model 'resnet81'. Did you mean 'resnet18'?"),
        ("summary lenet resnet", "unexpected argument 'resnet'"),
        ("summary lenet --recipe he2016", "recipe he2016 is for resnet20"),
        ("summary lenet --batch-size 0", "--batch-size must be greater than 0, got 0"),
        ("summary lenet --num-classes ten", "--num-classes must be a whole number, got 'ten'"),
        ("summary lenet --model-options dropout=0", "lenet has no options"),
        ("summary ghasemi --model-options depth=0", "unknown option of ghasemi 'depth'"),
        ("summary lenet --onnx x", "unknown option '--onnx'"),
    ],
)
def test_a_wrong_input_is_one_line_and_status_2(capsys, command, message):
    assert main(command.split()) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert captured.out == ""


@pytest.mark.parametrize("command", ["models", "recipes", "summary"])
def test_help_says_how_a_command_is_called(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m cifar_dist {command} ")
    assert command in COMMANDS
