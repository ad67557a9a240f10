"""``engine import``: what is written, what it says of how images are prepared, what is refused; readers of weights."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from caffe_files import write_caffemodel, write_mean
from nets import deploy, head, one, random_blobs
from safetensors.torch import load_file

from engine import UsageError, manifest
from engine.plugins.caffe import Import
from engine.plugins.caffe.importing import _imported
from engine.plugins.caffe.weights import read_caffemodel
from engine.registry import Registry, Store
from engine.weights import read_state

SHAPE = (1, 16, 16)
LAYERS = one("Convolution", rest="convolution_param { num_output: 4 kernel_size: 3 }", name="it's/a$b") + head(
    "out", 10
)


@pytest.fixture
def net(tmp_path) -> dict[str, Path]:
    """A small net for digits: its prototxt and its weights, which have one name."""
    text = deploy(LAYERS, SHAPE)
    (tmp_path / "text").mkdir()
    (tmp_path / "text/net.caffemodel").write_text(text)
    return {
        "prototxt": tmp_path / "text/net.caffemodel",
        "caffe": write_caffemodel(tmp_path / "net.caffemodel", random_blobs(text, SHAPE)),
    }


def given(net: dict[str, Path], *more: str) -> list[str]:
    return ["import", *(f"{name}={path}" for name, path in net.items()), *more]


def refused(ran: tuple[int, str, str]) -> str:
    code, told, said = ran
    assert code == 2
    assert told == ""
    return said.splitlines()[-1].removeprefix("engine: ")


def figures(text: str) -> dict[str, str]:
    return dict(re.findall(r"(loss|accuracy) ([\d.]+)", text))


def test_a_checkpoint_stands_alone(engine, net, tmp_path):
    """Moved, without the files that it was made of, it evaluates as the files themselves do."""
    code, told, said = engine(*given(net, "mean_values=[32]", "scale=0.5", "out=made"))
    assert code == 0, said
    folder = Path(told.strip().rpartition(": ")[2])
    assert folder == tmp_path / "made/checkpoints/step-00000000"
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    by_files = [
        "evaluate", f"checkpoint={net['caffe']}", "model=caffe", f"model.prototxt={net['prototxt']}", "data=digits",
        f"augment.normalize.mean=[{32 / 255}]", f"augment.normalize.std=[{2 / 255}]",
    ]  # fmt: skip
    code, expected, said = engine(*by_files)
    assert code == 0, said
    for path in net.values():
        path.unlink()
    code, found, said = engine("evaluate", "checkpoint=elsewhere", "data=digits")
    assert code == 0, said
    assert figures(found) == figures(expected)


def test_a_mean_image_is_among_the_weights(engine, net, tmp_path):
    """The middle of a larger mean is subtracted, pixel by pixel, as Caffe does where it crops."""
    image = np.random.default_rng(0).uniform(0, 255, (1, 19, 18))
    mean = write_mean(tmp_path / "mean.binaryproto", image)
    code, _, said = engine(*given(net, f"mean={mean}", "scale=0.5", "out=made"))
    assert code == 0, said
    mean.unlink()
    stored = load_file(tmp_path / "made/checkpoints/step-00000000/model.safetensors")
    assert np.allclose(stored["mean_image"], 0.5 * image[:, 1:17, 1:17], atol=1e-5)
    card = manifest.read(tmp_path / "made/checkpoints/step-00000000")["preprocessing"]
    assert card["mean_image"]
    assert card["mean"] == [0.0]
    code, _, said = engine("evaluate", "checkpoint=made", "data=digits")
    assert code == 0, said


def test_the_card_says_what_files_and_options_say(engine, net, tmp_path):
    (tmp_path / "words.txt").write_text("".join(f"n{n:08} digit {n}\n" for n in range(10)))
    code, _, said = engine(*given(net, "mean_values=[32]", "classes=words.txt", "resize=[20]", "crop=16", "out=made"))
    assert code == 0, said
    facts = manifest.verify(tmp_path / "made/checkpoints/step-00000000")
    assert facts["preprocessing"] == {
        "order": "", "mean": [32.0], "mean_image": False, "scale": 1.0, "resize": [20], "crop": 16, "mirror": False,
        "classes": [f"n{n:08} digit {n}" for n in range(10)],
    }  # fmt: skip
    assert facts["choices"]["augment"] == ["resize", "center_crop", "normalize"]
    sums = {role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in net.items()}
    assert facts["caffe"] == {role: {"name": path.name, "sha256": sums[role]} for role, path in net.items()}


def test_what_no_file_says_is_assumed_and_told(engine, tmp_path):
    shape = (3, 131, 131)
    pooled = one("Pooling", "data", "p", "pooling_param { pool: AVE global_pooling: true }", "pool")
    text = deploy(pooled + head("p", 10), shape)
    (tmp_path / "net.prototxt").write_text(text)
    path = write_caffemodel(tmp_path / "net.caffemodel", random_blobs(text, shape))
    code, _, said = engine("import", f"caffe={path}", "prototxt=net.prototxt", "out=made")
    assert code == 0, said
    for assumed in ("channels=bgr is assumed", "resize=[256,256] is assumed", "no mean is subtracted"):
        assert assumed in said
    code, _, said = engine(
        "import",
        f"caffe={path}",
        "prototxt=net.prototxt",
        "channels=rgb",
        "resize=[140]",
        "mean_values=[1]",
        "out=told",
    )
    assert code == 0, said
    assert said == ""


def test_a_transform_of_the_prototxt_is_used(engine, tmp_path):
    transform = (
        "transform_param { crop_size: 12 mean_value: 10 mean_value: 20 mean_value: 30 scale: 0.25 mirror: true }"
    )
    data = f'layer {{ name: "d" type: "Data" top: "data" top: "label" {transform} data_param {{ batch_size: 8 }} }}\n'
    net = data + head("data", 4) + 'layer { name: "l" type: "SoftmaxWithLoss" bottom: "score" bottom: "label" }'
    (tmp_path / "net.prototxt").write_text(net)
    path = write_caffemodel(tmp_path / "net.caffemodel", random_blobs(net, (3, 12, 12)))
    code, _, said = engine("import", f"caffe={path}", "prototxt=net.prototxt", "channels=bgr", "out=made")
    assert code == 0, said
    facts = manifest.read(tmp_path / "made/checkpoints/step-00000000")
    card = facts["preprocessing"]
    assert (card["mean"], card["scale"], card["crop"], card["mirror"]) == ([10, 20, 30], 0.25, 12, True)
    assert facts["choices"]["augment"] == ["center_crop", "channel_order", "normalize"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["out=made", "augment=[flip]"], r"augment=\[flip\]: the import decides about augment"),
        (["out=made", "mean=none.binaryproto"], r"\S*none\.binaryproto does not exist"),
        (["out=made", "state=s.solverstate"], "state=FILE.solverstate needs caffe=FILE"),
        ([], "out must be given"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_written(engine, net, tmp_path, more, message):
    assert re.search(message, refused(engine(*given(net, *more))))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean_values": [1.0, 2.0]}, r"mean_values=\[1\.0, 2\.0\]: give one for each of 1 channels"),
        ({"mean": "m", "mean_values": [1.0]}, "mean and mean_values exclude each other"),
        ({"resize": [1, 2, 3]}, r"resize=\[1, 2, 3\]: give the shorter side"),
        ({"scale": -1.0}, r"scale=-1\.0: must be above 0"),
        ({"inputs": [3, 4]}, r"inputs=\[3, 4\]: give channels, height and width"),
        ({"inputs": [1, 12, 12]}, "classifier.weight is .* in the prototxt's network"),
    ],
)
def test_options_that_do_not_fit_the_files_are_refused(net, options, message):
    with pytest.raises(UsageError, match=message):
        _imported(Import(caffe=str(net["caffe"]), prototxt=str(net["prototxt"]), **options), None)


def test_an_import_never_overwrites(engine, net):
    assert engine(*given(net, "out=made"))[0] == 0
    assert refused(engine(*given(net, "out=made"))) == "out=made holds a run already: give another out="


def test_layers_that_are_missing_or_not_needed_are_told(engine, net, tmp_path):
    blobs = random_blobs(deploy(LAYERS, SHAPE), SHAPE)
    more = {**blobs, "loss1/fc": ("InnerProduct", [np.ones((2, 2), np.float32)])}
    write_caffemodel(net["caffe"], more)
    code, _, said = engine(*given(net, "out=made"))
    assert code == 0, said
    assert "not used, as no head depends on them: loss1.fc" in said
    write_caffemodel(net["caffe"], {name: blobs[name] for name in blobs if name != "classifier"})
    assert "net.caffemodel has no weights for classifier" in refused(engine(*given(net, "out=other")))


def test_imported_weights_start_a_training_for_other_classes(engine, net, tmp_path):
    code, _, said = engine(*given(net, "mean_values=[32]", "out=made"))
    assert code == 0, said
    code, _, said = engine(
        "train", "transfer=head", "transfer.weights=made", "model=caffe", f"model.prototxt={net['prototxt']}",
        "data=digits", "run.steps=3", "out=run", "observe=[csv]",
        f"augment.normalize.mean=[{32 / 255}]", f"augment.normalize.std=[{1 / 255}]",
    )  # fmt: skip
    assert code == 0, said
    before, after = (load_file(tmp_path / f"{run}/model.safetensors") for run in (
        "made/checkpoints/step-00000000", "run/checkpoints/step-00000003"))  # fmt: skip
    assert torch.equal(before["it's.a$b.weight"], after["it's.a$b.weight"])
    assert not torch.equal(before["classifier.weight"], after["classifier.weight"])


def test_the_engine_reads_caffemodels_wherever_it_reads_weights(net):
    found, expected = read_state(net["caffe"]), read_caffemodel(net["caffe"])
    assert (
        found.keys() == expected.keys() == {"it's.a$b.weight", "it's.a$b.bias", "classifier.weight", "classifier.bias"}
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_suffix_is_read_by_one_plugin():
    readers = Registry.load().readers
    assert readers[".caffemodel"].plugin == "caffe"
    store = Store("other", {}, readers)
    with pytest.raises(UsageError, match=r"'\.caffemodel' files, of plugin 'other': plugin 'caffe' reads these"):
        store.add_reader(".caffemodel", read_caffemodel)
    for suffix in (".pt", "caffemodel", ".a/b", ""):
        with pytest.raises(UsageError, match="a suffix is a dot and lower-case letters"):
            store.add_reader(suffix, read_caffemodel)
