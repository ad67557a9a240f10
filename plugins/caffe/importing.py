"""``engine import``: Caffe's weights as a checkpoint of the engine's, Caffe's solver as an experiment."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from engine import Session, UsageError, __version__, assemble, manifest
from engine.checkpoint import Checkpoints
from engine.metrics import Best
from engine.state import ENGINE, MODEL, OPTIMIZER
from engine.weights import load_state

from . import CaffeNetwork
from .building import STORED, graph, mean_of, network, text_of
from .card import Card, card_of
from .composing import Composition
from .graph import Graph
from .history import momentum
from .network import Network
from .prototxt import Mistake, parse, written
from .solver import Solver, read_solver
from .weights import fitted, read_caffemodel
from .wire import read_solver_state

if TYPE_CHECKING:
    from . import Import


@dataclass(frozen=True)
class Imported:
    """A network with its weights, and how images are prepared for it."""

    graph: Graph
    text: str
    network: Network
    card: Card

    def compose(self, into: Composition, training: bool) -> None:
        """Add what makes the network and its images."""
        into.choices["model"] = "caffe"
        into.values["model.prototxt"] = self.text
        if self.card.mean_image:
            into.values["model.mean"] = STORED
        self.card.augment(into, training)


def import_caffe(session: Session) -> None:
    """Write a checkpoint or an experiment into the folder out=. Raises UsageError with nothing written."""
    job: Import = session.options.job  # type: ignore[assignment]
    if not (job.caffe or job.solver):
        raise UsageError("give caffe=FILE.caffemodel with prototxt=FILE, or solver=FILE.prototxt")
    if job.state and not (job.caffe and job.solver):
        raise UsageError("state=FILE.solverstate needs caffe=FILE.caffemodel and solver=FILE.prototxt too")
    if job.caffe and job.solver and not job.state:
        raise UsageError("caffe and solver together need state=FILE.solverstate: import one after the other without it")
    if job.caffe and not session.options.out:
        raise UsageError("out must be given: the folder of the checkpoint to be made")
    if job.caffe and manifest.checkpoints(session.out):
        raise UsageError(f"out={session.options.out} holds a run already: give another out=")
    solver = read_solver(Path(job.solver).expanduser(), job.prototxt, say) if job.solver else None
    if not job.caffe:
        assert solver
        _write_experiment(session, job, solver)
        return
    imported = _imported(job, solver)
    if solver:
        _go_on(session, job, solver, imported)
    else:
        _write_checkpoint(session, job, imported)


def say(text: str) -> None:
    """Tell the user something that is no result."""
    print(f"engine: {text}", file=sys.stderr)


def _imported(job: Import, solver: Solver | None) -> Imported:
    """Return what the files hold. Raises UsageError where they do not fit."""
    prototxt = job.prototxt or (str(solver.net) if solver else "")
    if not prototxt:
        raise UsageError("prototxt must be given: the network that the weights are of")
    text, origin = text_of(prototxt)
    found, size = described(text, origin, job)
    path = Path(job.caffe).expanduser()
    card = card_of(job, found, size[0], max(size[1:]), say)
    made = network(CaffeNetwork(prototxt=text, mean=STORED if card.mean_image else ""), size, None)
    state = read_caffemodel(path)
    if card.mean_image:
        image = mean_of(card.mean_image, size, card.scale)
        assert image is not None
        state["mean_image"] = image
    chosen, left = fitted(state, made.state_dict(), path)
    if left:
        say(f"not used, as no head depends on them: {', '.join(left[:10])}{' ...' if len(left) > 10 else ''}")
    load_state(made, chosen, str(path))
    return Imported(found, written(parse(text)), made.eval(), card)


def described(text: str, origin: str, job: Import) -> tuple[Graph, tuple[int, int, int]]:
    """Return a prototxt's graph and the size of its images, (channels, height, width). Raises UsageError."""
    try:
        found = graph(text, "TRAIN")
    except Mistake as error:
        raise UsageError(f"{origin}: {error}") from error
    if job.inputs:
        if len(job.inputs) != 3 or min(job.inputs) < 1:
            raise UsageError(f"inputs={list(job.inputs)}: give channels, height and width, as [3,227,227]")
        return found, (job.inputs[0], job.inputs[1], job.inputs[2])
    if found.size is None:
        raise UsageError(f"{origin} does not say how large its images are: give inputs=[channels,height,width]")
    return found, found.size


def _write_checkpoint(session: Session, job: Import, imported: Imported) -> None:
    composition = Composition()
    imported.compose(composition, training=False)
    composition.require_unset(session.overrides)
    state = imported.network.state_dict()
    zeros = {"updates": torch.zeros(1, dtype=torch.int64), "skipped": torch.zeros(1), "metrics": torch.zeros(1)}
    facts = {
        "engine": __version__,
        "torch": str(torch.__version__),
        "optimizer": "none",
        "dtype": "torch.float32",
        "precision": "Float32",
        "parallel": {},
        "overrides": [*composition.words(), *session.overrides],
        "choices": {**session.choices, **composition.choices, "job": "train"},
        "position": {"step": 0, "sample": 0, "stage": 0, "begun": 0},
        "best": asdict(Best("loss", False)),
        "data": {"fingerprint": "none: imported from Caffe", "images": 0, "classes": imported.card.classes},
        "parameters": {name: [str(value.dtype), list(value.shape)] for name, value in state.items()},
        "optimizer_numbers": {},
        "kernels": {},
        "observers": {},
        "preprocessing": imported.card.facts(),
        "caffe": _sources(job),
    }
    checkpoints = Checkpoints(session.out, keep=1, best=False, higher_is_better=True)
    folder = checkpoints.save(0, {MODEL: state, OPTIMIZER: {}, ENGINE: zeros}, facts, None)
    _tell(folder, imported)


def _sources(job: Import) -> dict[str, Any]:
    """Return the name and SHA-256 of the files that were imported, by what they are: two may have one name."""
    given = {"caffe": job.caffe, "prototxt": job.prototxt, "mean": job.mean}
    paths = {role: Path(each).expanduser() for role, each in given.items() if each}
    return {role: {"name": path.name, "sha256": manifest.file_checksum(path)} for role, path in paths.items()}


def _tell(folder: Path, imported: Imported) -> None:
    count = sum(parameter.numel() for parameter in imported.network.parameters())
    name = imported.graph.name or "network"
    print(f"{name}, {count:,} parameters, {imported.network.outputs} outputs: {folder}")


def _go_on(session: Session, job: Import, solver: Solver, imported: Imported) -> None:
    """Write the checkpoint of a run that is where Caffe's solver was."""
    state = read_solver_state(Path(job.state).expanduser())
    composition = Composition()
    imported.compose(composition, training=True)
    solver.compose(composition, imported.graph)
    composition.require_unset(session.overrides)
    again = composition.session(session)
    again = replace(again, options=replace(again.options, observe={}))
    if state.iteration >= solver.steps:
        raise UsageError(f"{job.state} is after {state.iteration} steps, and {job.solver} ends at {solver.steps}")
    run = assemble(again, say)
    try:
        load_state(run.model, imported.network.state_dict(), job.caffe)
        run.position = run.loader.position_of(state.iteration)
        run.rates.updates.fill_(state.iteration)
        run.rates.look_up()
        momentum(run.optimizer, imported.graph, imported.network, state, Path(job.state))
        run.save()
    finally:
        run.close()
    _tell(manifest.folder_of(session.out, state.iteration), imported)


def _write_experiment(session: Session, job: Import, solver: Solver) -> None:
    """Print a solver's choices and options as overrides, and write them as an experiment if there is an out=."""
    text, origin = text_of(str(solver.net))
    found, size = described(text, origin, job)
    card = card_of(job, found, size[0], max(size[1:]), say)
    composition = Composition(choices={"model": "caffe"}, values={"model.prototxt": str(solver.net)})
    if card.mean_image:
        composition.values["model.mean"] = card.mean_image
        if card.scale != 1:
            composition.values["model.mean_scale"] = card.scale
    card.augment(composition, training=True)
    solver.compose(composition, found)
    composition.require_unset(session.overrides)
    if session.options.out:
        name = "".join(sign if sign.isalnum() else "_" for sign in Path(job.solver).stem).lower() or "caffe"
        whole = replace(composition, values={**composition.values, "model.prototxt": written(parse(text))})
        path = session.out / "experiment" / f"{name}.yaml"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(whole.experiment(f"Caffe's solver {Path(job.solver).name}"), encoding="utf-8")
        except OSError as error:
            raise UsageError(f"out={session.options.out} cannot be written ({error.strerror}): give another") from error
        say(f"engine train --config-dir {session.options.out} experiment={name} data=... trains as it says")
    print(" ".join(composition.words()))
