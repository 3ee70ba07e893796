import pytest

from cifar_dist.config import TrainConfig
from cifar_dist.errors import UserError
from cifar_dist.options import OneLineParser, add_flags, resolve_train_config
from cifar_dist.training.preflight import check_early


def resolve(*argv: str) -> TrainConfig:
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    return resolve_train_config(parser.parse(argv))


def test_options_beat_the_recipe_and_the_recipe_beats_the_defaults():
    config = resolve("--recipe", "li2024", "--lr", "0.5")
    assert (config.model, config.batch_size, config.lr) == ("lenet", 4, 0.5)
    assert TrainConfig(epochs=1).batch_size == 128


def test_epochs_replaces_a_recipes_steps_and_steps_its_epochs():
    assert (resolve("--recipe", "he2016").steps, resolve("--recipe", "he2016").epochs) == (64_000, None)
    assert (
        resolve("--recipe", "he2016", "--epochs", "3").steps,
        resolve("--recipe", "he2016", "--epochs", "3").epochs,
    ) == (
        None,
        3,
    )
    assert resolve("--model", "lenet", "--steps", "9").epochs is None


def test_values_of_every_kind_are_read():
    config = resolve(
        *(
            [
                "--model",
                "resnet",
                "--augment",
                "none",
                "--milestones",
                "0.2",
                "0.6",
                "--schedule",
                "multistep",
            ]
        ),
        *(
            [
                "--drop-last",
                "--no-nesterov",
                "--max-grad-norm",
                "none",
                "--micro_batch_size=32",
                "--limit-train",
                "1_000",
            ]
        ),
    )
    assert config.model == "resnet20"
    assert config.schedule == "multistep"
    assert config.augment == ()
    assert config.milestones == (0.2, 0.6)
    assert (config.drop_last, config.nesterov, config.max_grad_norm) == (True, False, None)
    assert (config.micro_batch_size, config.limit_train) == (32, 1000)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--model resnet81", r"unknown model 'resnet81'. Did you mean 'resnet"),
        ("--recipe he2015", "unknown recipe 'he2015'. Did you mean 'he2016'"),
        ("--bs 3", "unknown option '--bs'. Did you mean '--batch-size'?"),
        ("--learning_rate=0.1", "Did you mean '--lr'?"),
        ("--dropout 0.1", "Did you mean '--model-options dropout=0.2'?"),
        ("--gpus 2", "accelerate launch --num_processes N train.py starts several processes. --help"),
        ("--num_workers 4", "There are none: images are decoded once"),
        ("--batchsize 3", "unknown option '--batchsize'. Did you mean '--batch-size'"),
        ("--batch-size many", "--batch-size must be a whole number, got 'many'"),
        ("--batch-size 1.5", "--batch-size must be a whole number, got '1.5'"),
        ("--lr fast", "--lr must be a number, got 'fast'"),
        ("--optimizer sdg", "unknown --optimizer 'sdg'. Did you mean 'sgd'"),
        ("--milestones 0.5 late", "--milestones takes numbers"),
        ("--epochs", "expected one argument"),
        ("resnet20", "unexpected argument 'resnet20'"),
        ("--model lenet --recipe he2016", "recipe he2016 is for resnet20, .* not lenet"),
        ("--optimizer adam --momentum 0.5", "--momentum has no effect with --optimizer adam; it needs sgd or muon"),
        ("--bias-lr-per-image 0.5", "--bias-lr-per-image has no effect with --optimizer sgd; it needs muon"),
        ("--head-lr-per-image 0.5", "--head-lr-per-image has no effect with --optimizer sgd; it needs muon"),
        ("--optimizer muon --nesterov", "--nesterov has no effect with --optimizer muon; it needs sgd"),
        (
            "--optimizer muon --decay-all",
            "--decay-all has no effect with --optimizer muon; it needs sgd or adam or adamw",
        ),
        ("--milestones 0.5", "--milestones has no effect with --schedule cosine; it needs multistep"),
    ],
)
def test_a_wrong_option_is_one_line_with_the_way_out(argv, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(*argv.split())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [("--nesterov=True", True), ("--nesterov=false", False), ("--drop_last=true", True), ("--no-test", False)],
)
def test_switches_may_be_written_as_a_wandb_agent_does(word, value):
    name = word.lstrip("-").removeprefix("no-").partition("=")[0].replace("-", "_")
    assert getattr(resolve(word), name) is value


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("--augment=['crop', 'flip']", ("crop", "flip")),
        ("--augment=[]", ()),
        ("--augment=None", ()),
        ("--limit_train=None", None),
    ],
)
def test_lists_and_none_may_be_written_as_a_wandb_agent_does(word, value):
    assert getattr(resolve(word), word[2:].partition("=")[0]) == value


@pytest.mark.parametrize("word", ["--augment=['crop", "--milestones=['a']"])
def test_a_broken_list_is_refused(word):
    with pytest.raises(UserError, match=r"takes (words|numbers), got"):
        resolve(word)


def test_a_switch_with_another_value_is_refused():
    with pytest.raises(UserError):
        resolve("--nesterov=maybe")


def test_model_options_not_given_stay_as_in_the_recipe():
    config = resolve("--recipe", "ghasemi2024/9", "--model-options", "dropout=0.5")
    assert config.model_options == ("batch_norm=no", "convolutions=6", "dropout=0.5", "linear_layers=3")
    assert resolve("--recipe", "ghasemi2024/9", "--model-options", "none").model_options == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--folds 5 --fold 0 --val-fraction 0.3", "--val-fraction has no effect with --folds"),
        ("--model mlp --model-options width=8 width=16", "--model-options width=16 width=8 sets width twice"),
        (
            "--model mlp --model-options width=99999999999999999999",
            "--model-options width must be at most 10000, got 9999",
        ),
        ("--model som --model-options sigma_start=inf", "sigma_start >= sigma_end > 0"),
        ("--model ghasemi --model-options linear_layers=10", "1 to 9 linear_layers, got 5 and 10"),
    ],
)
def test_what_would_be_ignored_or_can_not_be_built_is_refused(words, message):
    with pytest.raises(UserError) as error:
        check_early(resolve(*words.split()))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [["--output-dir=~/x", "--data=~/y"], ["--output_dir", "~/x", "--data", "~/y"]])
def test_a_home_folder_that_a_shell_left_is_found(words, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    parser = OneLineParser()
    add_flags(parser, TrainConfig)
    assert parser.parse(words) == {"output_dir": "/home/me/x", "data": "/home/me/y"}
