"""``engine compare``: what networks cost and see, side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine import Session, UsageError
from engine.budget.foresight import Foresight, Task
from engine.budget.ledger import Memory
from engine.budget.search import size
from engine.budget.tasks import task_of
from engine.options import Model, check
from engine.registry import Registry

from .rows import Table, table_of
from .text import aligned, as_json, field, require_writable, write_json

if TYPE_CHECKING:
    from . import Compare

HEADS = (
    "network", "layers", "parameters", "G multiply-adds", "sees", "stride", "from", "saved MiB", "step's memory"
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """One network: its layers, and what a training step takes."""

    name: str
    table: Table
    memory: Memory


def compare(session: Session) -> None:
    """Print a row for each network; write the figures to ``json=`` too."""
    job: Compare = session.options.job  # type: ignore[assignment]
    require_writable(job.json)
    task = task_of(session, job.inputs, job.classes)
    batch = job.batch or session.options.run.batch
    named: dict[str, Model] = {name: model_of(name, session.registry) for name in job.models}
    if not named:
        named = {str(session.choices.get("model", "model")): session.options.model}
    networks = [network(name, options, task, batch) for name, options in named.items()]
    print(f"images {' x '.join(map(str, task.image))}, {task.outputs} outputs; a training step of {batch} images")
    print(f"\n{text(networks)}")
    print("\nmultiply-adds and saved bytes are of one image; what a network sees, of a unit before global pooling")
    for each in networks:
        for gap in each.table.fields.gaps:
            print(f"{each.name}: receptive field {gap}")
    write_json(job.json, {"batch": batch, "networks": [content(each) for each in networks]})


def model_of(text: str, registry: Registry) -> Model:
    """Return the options that "NAME FIELD=VALUE ..." stands for. Raises UsageError for what there is none of."""
    name, *settings = text.split() or [""]
    kind: Any = registry.entry("model", name).options
    fields = {f.name for f in dataclasses.fields(kind)}
    given = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        key = key.removeprefix("model.")
        if not equals or key not in fields:
            raise UsageError(f"models: '{setting}' is no option of model={name}; it has {', '.join(sorted(fields))}")
        given[key] = _value(value)
    options: Model = kind(**given)
    check(options, f"model={name}.")
    return options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:  # then it is a word
        return text


def network(name: str, options: Model, task: Task, batch: int) -> Network:
    """Return what there is to tell of one network."""
    composed = dataclasses.replace(task.options, model=options)
    foresight = Foresight(dataclasses.replace(task, options=composed))
    return Network(name, table_of(foresight, batch), foresight.step(batch))


def text(networks: Sequence[Network]) -> str:
    """Return the table."""
    rows = []
    for each in networks:
        table = each.table
        rows.append([
            each.name, str(layers(table)), f"{table.trainable + table.frozen:,}", f"{table.multiply_adds / 1e9:.3f}",
            *field(table.fields.last), f"{table.saved / 2**20:.1f}", size(each.memory.total),
        ])  # fmt: skip
    return aligned(HEADS, rows)


def layers(table: Table) -> int:
    """Return how many layers have filters or a matrix, as papers count them."""
    return sum(row.calls for row in table.rows if row.multiply_adds)


def content(each: Network) -> dict[str, Any]:
    """Return a network's figures as JSON's kinds."""
    table = each.table
    return {
        "name": each.name,
        "layers": layers(table),
        "parameters": table.trainable + table.frozen,
        "multiply_adds": table.multiply_adds,
        "field": as_json(table.fields.last),
        "saved_bytes": table.saved,
        "step_bytes": each.memory.total,
    }
