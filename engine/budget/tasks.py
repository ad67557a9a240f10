"""What a step is of, from a command's options."""

from __future__ import annotations

from collections.abc import Sequence

from engine.budget.foresight import Task
from engine.composed import images_and_outputs
from engine.devices import prepare_device
from engine.errors import UsageError
from engine.host_to_device import Layout
from engine.session import Session


def task_of(session: Session, inputs: Sequence[int] = (), classes: int = 10) -> Task:
    """Return the composed task for the composed data; for images of ``inputs`` with so many classes, if given.

    No data is opened then. Raises UsageError for inputs that are not three sizes.
    """
    options = session.options
    device, loss = prepare_device(options), options.loss.build()
    if inputs:
        if len(inputs) != 3 or min(inputs) < 1:
            given = ",".join(map(str, inputs))
            raise UsageError(
                f"inputs=[{given}]: give channels, height and width of the images, as in inputs=[3,224,224]"
            )
        channels, height, width = inputs
        return Task(options, (channels, height, width), loss.outputs(classes), device)
    layout = Layout(device, options.precision.build().dtype, options.run.channels_last)
    (channels, height, width), outputs = images_and_outputs(options, loss, layout, training=True)
    return Task(options, (channels, height, width), outputs, device)
