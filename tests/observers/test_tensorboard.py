"""The event file as TensorBoard's own reader and protocol buffers see it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams

from engine import RunFailed
from engine.plugins.observers import TensorBoard


def read(folder: Path) -> EventAccumulator:
    """Load all of a folder's events, none left out by sampling."""
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    )
    return events.Reload()


def event_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "tfevents" in path.name)


def scalars(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(e.step, pytest.approx(e.value, rel=1e-6)) for e in events.Scalars(tag)]


def text(events: EventAccumulator, tag: str) -> str:
    return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()


def hparams_tags(events: EventAccumulator) -> set[str]:
    return {tag for tag in events.summary_metadata if tag.startswith("_hparams_/")}


def hparams_content(events: EventAccumulator, tag: str) -> bytes:
    return events.SummaryMetadata(tag).plugin_data.content


def test_scalars_lie_against_the_steps(make_run):
    run = make_run()
    run.play(TensorBoard().build())
    events = read(run.out)
    assert scalars(events, "train/loss") == [(2, 0.5), (4, 0.25), (6, 1 / 6)]
    assert scalars(events, "speed/images_per_second") == [(step, 1234.5) for step in (2, 4, 6)]
    assert scalars(events, "test/accuracy") == [(3, 0.87), (6, 0.84)]
    assert scalars(events, "test/best_accuracy") == [(6, 0.87)]


def test_a_process_writes_one_file_in_the_run_folder_itself(make_run):
    run = make_run()
    run.play(TensorBoard(histograms=1).build())
    assert [path.parent for path in event_files(run.out)] == [run.out]


def test_configuration_overrides_and_tables_are_text(make_run):
    run = make_run()
    run.play(TensorBoard().build())
    events = read(run.out)
    assert text(events, "run/configuration") == "    model:\n      width: 8"
    assert text(events, "run/overrides") == "* `model=net`\n* `model.width=8`"
    assert "conv1   native" in text(events, "run/tables")


def test_the_first_batch_is_shown_stretched_to_the_full_range(make_run):
    run = make_run()
    run.play(TensorBoard().build())
    (event,) = read(run.out).Images("train/first_batch")
    picture = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert event.step == 0
    assert picture.shape == (65, 65, 3)  # 2 x 2 tiles of 8 x 8 pixels enlarged four times, a line between them
    assert (picture == picture[:, :, :1]).all()
    tile = picture[:32:4, :32:4, 0].astype(float)
    np.testing.assert_allclose(tile, np.arange(64).reshape(8, 8) / 63 * 255, atol=0.5)
    assert np.array_equal(picture[33:, 33:], picture[:32, :32])  # each image is stretched by itself
    assert (picture[32] == 128).all()


@pytest.mark.parametrize(("images", "shape"), [(1, (32, 32)), (2, (32, 65))])
def test_fewer_images_can_be_asked_for(make_run, images, shape):
    run = make_run()
    run.play(TensorBoard(images=images).build())
    (event,) = read(run.out).Images("train/first_batch")
    assert (event.height, event.width) == shape


def test_no_images_and_histograms_unless_asked_for(make_run):
    run = make_run()
    observer = TensorBoard(images=0).build()
    run.play(observer)
    tags = read(run.out).Tags()
    assert (tags["images"], tags["histograms"]) == ([], [])
    assert not hasattr(observer, "on_backward_end")


def test_histograms_hold_the_weights_and_the_gradients_of_the_logged_step(make_run):
    run = make_run()
    run.play(TensorBoard(histograms=2).build())
    events = read(run.out)
    assert sorted(events.Tags()["histograms"]) == [
        "gradients/bias", "gradients/weight", "weights/bias", "weights/weight",
    ]  # fmt: skip
    weight = run.model.weight.detach().double()
    for event in events.Histograms("weights/weight"):
        value = event.histogram_value
        assert (value.num, value.min, value.max) == (6, weight.min().item(), weight.max().item())
        assert value.sum == pytest.approx(weight.sum().item())
    gradients = [(e.step, e.histogram_value.min, e.histogram_value.max) for e in events.Histograms("gradients/weight")]
    assert gradients == [(4, 4.0, 4.0), (6, 6.0, 6.0)]  # every second log, and the last step


def test_a_histogram_leaves_out_what_is_not_finite(make_run):
    run = make_run()
    run.model.weight.data[0, 0] = float("nan")
    run.model.bias.data.fill_(float("inf"))
    run.play(TensorBoard(histograms=1).build())
    events = read(run.out)
    assert events.Histograms("weights/weight")[0].histogram_value.num == 5
    assert "weights/bias" not in events.Tags()["histograms"]


def test_hparams_are_the_options_by_name(make_run):
    run = make_run(run__clip=None, optim__lr=0.05)
    run.play(TensorBoard().build())
    events = read(run.out)
    content = hparams_content(events, hparams.SESSION_START_INFO_TAG)
    values = hparams.parse_session_start_info_plugin_data(content).hparams
    assert (values["model"].string_value, values["augment"].string_value) == ("net", "flip")
    assert values["optim.lr"].number_value == 0.05
    assert values["augment.flip.chance"].number_value == 0.25
    assert values["model.width"].number_value == 8
    assert values["model.batch_norm"].string_value == "true"
    assert values["run.epochs"].number_value == 20
    assert "run.clip" not in values  # null
    assert not [name for name in values if name.split(".")[0] in ("out", "resume", "save", "observe", "job")]
    end = hparams.parse_session_end_info_plugin_data(hparams_content(events, hparams.SESSION_END_INFO_TAG))
    assert end.status == 1  # STATUS_SUCCESS in TensorBoard's api.proto
    # No run may decide which columns the others have.
    assert hparams_tags(events) == {hparams.SESSION_START_INFO_TAG, hparams.SESSION_END_INFO_TAG}


@pytest.mark.parametrize(
    ("outcome", "written"),
    [("done", True), ("early stop", True), ("max_time", True), ("stopped by SIGTERM", False), ("failed", False)],
)
def test_only_a_finished_run_has_hparams(make_run, outcome, written):
    run = make_run()
    run.play(TensorBoard().build(), until=3, ends=outcome)
    events = read(run.out)
    assert (hparams.SESSION_START_INFO_TAG in hparams_tags(events)) is written
    assert ("test/best_accuracy" in events.Tags()["scalars"]) is written
    assert scalars(events, "test/accuracy") == [(3, 0.87)]


def test_a_resumed_run_takes_back_what_came_after_the_checkpoint(make_run):
    killed = make_run()
    observer = TensorBoard().build()
    killed.play(observer, until=5, ends=None)
    observer.on_exception(run=killed)  # flushes, as the writer's thread does every few seconds
    assert scalars(read(killed.out), "train/loss") == [(2, 0.5), (4, 0.25)]

    resumed = make_run(step=3)  # the checkpoint was at step 3: the log at step 4 happens again
    resumed.play(TensorBoard().build())
    assert len(event_files(resumed.out)) == 2
    events = read(resumed.out)
    assert scalars(events, "train/loss") == [(2, 0.5), (4, 0.25), (6, 1 / 6)]
    assert scalars(events, "test/accuracy") == [(3, 0.87), (6, 0.84)]
    served = plugin_event_accumulator.EventAccumulator(str(resumed.out)).Reload()  # what the server uses by itself
    assert [event.step for event in served.Tensors("train/loss")] == [2, 4, 6]


def test_a_checkpoint_brings_everything_to_the_file(make_run):
    run = make_run()
    observer = TensorBoard().build()
    run.play(observer, until=4, ends=None)
    observer.on_save_checkpoint(run=run)
    assert scalars(read(run.out), "train/loss") == [(2, 0.5), (4, 0.25)]
    observer.on_fit_end(run=run, outcome="failed")


def test_the_first_batch_of_a_run_without_logs_is_kept(make_run):
    run = make_run()
    run.play(TensorBoard().build(), until=1, ends="failed")
    assert [event.step for event in read(run.out).Images("train/first_batch")] == [0]


def test_an_unwritable_folder_is_named_in_one_line(make_run):
    run = make_run()
    run.out.rmdir()
    run.out.write_text("a file where the folder should be")
    with pytest.raises(RunFailed, match=r"run cannot be written \(.*\): make room there or choose another") as caught:
        run.play(TensorBoard().build())
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_complained_about_once(make_run, monkeypatch):
    run = make_run()
    observer = TensorBoard().build()
    run.play(observer, until=1, ends=None)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(observer._writer.file_writer.event_writer, "add_event", refuse)
    with pytest.raises(RunFailed, match="No space left on device"):
        observer.on_log(run=run, scalars={"train/loss": 1.0})
    observer.on_exception(run=run)
    observer.on_fit_end(run=run, outcome="failed")
