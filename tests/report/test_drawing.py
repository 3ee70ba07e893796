"""Drawings of networks: what is in them, and that it can be read."""

import re
import xml.etree.ElementTree as ET

import pytest
import torch
from helpers.browser import chromium, contrast, open_page
from helpers.pages import make_run
from torch import nn

from cifar_dist.__main__ import main
from cifar_dist.models import MODELS, build_model
from cifar_dist.models.flow import trace
from cifar_dist.report.architecture import Architecture, architecture
from cifar_dist.report.drawing import draw
from cifar_dist.report.page import write_report

SVG = "{http://www.w3.org/2000/svg}"
# Blocks with a skip, from the papers' tables; zhang's one is in its text, som's is |x|^2 in |x - w|^2.
SKIPS = {"zhang": 1, "som": 1, "resnet20": 9, "resnet32": 15, "resnet44": 21, "resnet56": 27, "resnet110": 54}
SKIPS |= {"resnet18": 8, "resnet34": 16, "resnet50": 16}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def drawn(name: str) -> str:
    return draw(architecture(trace(build_model(name))), name)


def repeats(net: Architecture) -> dict[int, int]:
    """How often what stands at each place of the path follows itself."""
    return {number: frame.repeats for frame in net.frames for number in range(frame.first, frame.last + 1)}


def texts(svg: str) -> list[str]:
    return [element.text for element in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", MODELS)
def test_the_skips_are_as_many_as_the_model_has(name):
    net = architecture(trace(build_model(name)))
    assert sum(repeats(net)[skip.target] for skip in net.skips) == SKIPS.get(name, 0)
    groups = ET.fromstring(draw(net, name)).iter(f"{SVG}g")
    assert len([group for group in groups if group.get("class") == "skip"]) == len(net.skips)
    if name in ("zhang", "resnet20", "resnet18"):  # no four blocks in a row are alike
        assert len(net.skips) == SKIPS[name]


@pytest.mark.parametrize("name", MODELS)
def test_boxes_hold_every_parameter_and_blocks_that_are_not_drawn_are_counted(name):
    model = build_model(name)
    net = architecture(trace(model))
    total = sum(box.parameters * repeats(net)[number] for number, box in enumerate(net.path))
    beside = sum(box.parameters for skip in net.skips for box in skip.boxes)
    assert total + beside == sum(p.numel() for p in model.parameters())


def test_lenets_drawing_reads_like_its_paper():
    assert texts(drawn("lenet"))[2:] == [
        *("image", "3×32×32"),
        *("Conv2d 3→6 5×5", "6×28×28", "ReLU", "456 parameters", "conv1", "MaxPool2d 2", "6×14×14", "pool1"),
        *("Conv2d 6→16 5×5", "16×10×10", "ReLU", "2,416 parameters", "conv2", "MaxPool2d 2", "16×5×5", "pool2"),
        *("Flatten", "400", "flatten", "Linear 400→120", "120", "ReLU", "48,120 parameters", "fc1"),
        *("Linear 120→84", "84", "ReLU", "10,164 parameters", "fc2", "Linear 84→10", "10", "850 parameters", "fc3"),
        *("logits", "10"),
    ]


def test_zhangs_skip_leaves_the_stem_before_its_relu_and_joins_before_the_fourth_convolution():
    net = architecture(trace(build_model("zhang")))
    (skip,) = net.skips
    assert [box.title for box in skip.boxes] == ["Conv2d 16->64 1x1 /4"]
    assert (net.path[skip.source].title, net.path[skip.source].more) == ("Conv2d 3->16 3x3", ("BatchNorm2d",))
    assert (net.path[skip.target].title, net.path[skip.target + 1].title) == ("concatenate", "Conv2d 128->128 3x3 /2")


def test_of_blocks_alike_the_first_is_drawn_with_their_number():
    shown = texts(drawn("resnet110"))
    assert shown.count("add") == 5  # 3 x 18 blocks, of which two change the shape
    for title in ("blocks.0 to blocks.17: BasicBlock", "blocks.19 to blocks.35: BasicBlock", "blocks.18: BasicBlock"):
        assert title in shown
    assert [text for text in shown if text.startswith("× ")] == ["× 18", "× 17", "× 17"]


def test_branches_side_by_side_and_around_each_other_have_lanes_of_their_own():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
            self.c, self.d = nn.Conv2d(8, 3, 1), nn.Linear(3, 5)

        def forward(self, images):
            x = torch.cat((self.a(images), self.b(images)), dim=1)
            return self.d((self.c(x) + images).mean(dim=(2, 3)))

    net = architecture(trace(Branches()))
    assert [box.title for box in net.path] == [
        "Conv2d 3->4 3x3", "concatenate", "Conv2d 8->3 1x1", "add", "global average pooling", "Linear 3->5",
    ]  # fmt: skip
    assert [(skip.source, skip.target, len(skip.boxes)) for skip in net.skips] == [(-1, 1, 1), (-1, 3, 0)]
    arcs = re.findall(r'class="skip"><path d="M[\d.]+ [\d.]+H([\d.]+)', draw(net, "branches"))
    assert float(arcs[1]) - float(arcs[0]) > 40


def test_a_title_is_text():
    svg = draw(architecture(trace(build_model("lenet"))), '<b>"&\x1b')
    assert texts(svg)[0] == '<b>"&\ufffd: 62,006 parameters'


# ---- the command and the page


def test_summary_draws_into_a_file(tmp_path, capsys):
    path = tmp_path / "net.svg"
    assert main(["summary", "zhang", "--draw", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"drawn in {path}\n")
    assert path.read_text() == drawn("zhang")
    assert main(["summary", "zhang", "--num-classes", "7", "--draw", str(path)]) == 0
    assert "Linear 128→7" in texts(path.read_text())


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("net.png", "doesn't end in .svg, which is what is drawn"),
        ("nowhere/net.svg", "there is no folder"),
        ("folder.svg", "is a folder, which would not be replaced"),
    ],
)
def test_a_file_that_can_not_be_drawn_is_one_line(tmp_path, capsys, file, message):
    (tmp_path / "folder.svg").mkdir()
    assert main(["summary", "lenet", "--draw", str(tmp_path / file)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: --draw ") and message in captured.err and captured.out == ""


def test_a_runs_page_has_the_drawing_of_its_model_and_draws_no_random_number(tmp_path):
    make_run(tmp_path / "run", model="ghasemi", model_options=("convolutions=2", "dropout=0.5"))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    page = write_report(tmp_path / "run", None).read_text()
    assert torch.equal(torch.get_rng_state(), before)
    (svg,) = re.findall(r"<svg xmlns.*?</svg>", page, re.DOTALL)
    convolutions, linear = (27 + 1 + 2) * 32 + (288 + 1 + 2) * 64, 257 * 512 + 513 * 256 + 257 * 4  # with batch norm
    assert texts(svg)[0] == f"ghasemi convolutions=2 dropout=0.5: {convolutions + linear:,} parameters"
    assert "Linear 256→4" in texts(svg)  # the run's four classes


@pytest.mark.parametrize(
    "options", [{"model": "resnet81"}, {"model": "mlp", "model_options": ("hidden_layers=9999", "width=9999")}]
)
def test_a_model_that_can_not_be_built_here_is_left_out(tmp_path, options):
    make_run(tmp_path / "run", **options)
    assert "The network" not in write_report(tmp_path / "run", None).read_text()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


OVERLAPPING = """() => {
  const boxes = [...document.querySelectorAll("text")].map(e => [e.textContent, e.getBoundingClientRect()]);
  const far = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom - 4 <= b.top || b.bottom - 4 <= a.top;
  const edge = document.documentElement.getBoundingClientRect();
  const pairs = boxes.flatMap(([s, a], i) => boxes.slice(i + 1).filter(([, b]) => !far(a, b)).map(([t]) => [s, t]));
  return [...pairs, ...boxes.filter(([, a]) => a.left < edge.left || a.right > edge.right).map(([s]) => [s, "edge"])];
}"""


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_no_text_lies_on_another_or_leaves_the_drawing(browser, tmp_path, name):
    path = tmp_path / "net.svg"
    path.write_text(drawn(name))
    with open_page(browser, path) as opened:
        assert opened.page.locator("text").count() > 10
        assert opened.page.evaluate(OVERLAPPING) == []
        assert opened.messages == []


@pytest.mark.slow
def test_light_and_dark_can_both_be_read(browser, tmp_path):
    path = tmp_path / "net.svg"
    path.write_text(drawn("resnet20"))
    grounds = []
    for scheme in ("light", "dark"):
        with open_page(browser, path, color_scheme=scheme) as opened:
            grounds.append(opened.colour(".ground", "fill"))
            for ground, ink in (("ground", "strong"), ("frame", "small"), ("box", "strong"), ("box", "small")):
                assert contrast(opened.colour(f".{ink}", "fill"), opened.colour(f".{ground}", "fill")) > 4.5
            assert contrast(opened.colour(".skip > path", "stroke"), opened.colour(".frame", "fill")) > 3
    assert sum(grounds[0]) > 700 and sum(grounds[1]) < 100
