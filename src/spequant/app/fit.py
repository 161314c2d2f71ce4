"""What the command fit prints: whether a network fits a board as C, and what would make it fit."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from spequant.app.commands.fit import BOARDS, Fit
from spequant.app.commands.screen import print_table
from spequant.app.recipes import Recipe
from spequant.app.recipes.command_line import recipe_named
from spequant.app.runs import open_source
from spequant.app.runs.fields import make_field
from spequant.app.runs.sources import example_of
from spequant.app.terminal import Terminal
from spequant.data import ImageSet
from spequant.deploy import Program, at_width, lower
from spequant.deploy.c.footprint import CODE, STACK, Footprint, footprint
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.zoo import of_zoo
from spequant.files import destination, write_json

FEWER = (4, 3, 2, 1)
"""Bits that are tried where a network does not fit."""
ADDITIONS = (4, 2)
"""Bits of residual additions that are tried then, with the fewest bits of all else."""


def print_fit(settings: Fit) -> None:
    """Print what the network takes and whether it fits; write the numbers as JSON.

    Raises:
        SystemExit: It does not fit; exit status 1.
        ValueError: It has no form in C, or nothing says how much room there is.
    """
    if settings.json is not None:
        destination(settings.json)
    room = {"flash": settings.flash_bytes, "ram": settings.ram_bytes}
    with Terminal(settings.source.name) as reporter:
        reporter.phase("planning flash and memory")
        recipe = _recipe(settings.source)
        programs = _of_recipe(recipe, settings) if recipe is not None else _of_source(settings)
        name, make = next(iter(programs.items()))
        took = footprint(*make())
        fits = _fits(took, room)
        others = {} if fits else _others(programs, room)
    print_table(_table(took, room))
    print(f"at the peak: {', '.join(f'{layer} {size:,}' for layer, size in took.peak[:4]) or 'nothing'} (bytes)")
    largest = sorted(took.layers.items(), key=lambda entry: -entry[1])[:3]
    print(f"largest weights: {', '.join(f'{layer} {size:,}' for layer, size in largest)}")
    if settings.board is not None:
        print(f"{settings.board}: {BOARDS[settings.board].source}")
    facts = {"network": name, "fits": fits, "room": room, **_facts(took)}
    write_json(settings.json, {**facts, "others": {label: _facts(other) for label, other in others.items()}})
    if not fits:
        for line in _advice(took, room, others):
            print(line)
        raise SystemExit(1)


def _recipe(source: Path) -> Recipe | None:
    """Return the recipe of that name; None: the source is a run or a file."""
    is_file = (source.exists() and source.suffix != ".json") or of_zoo(source)
    return None if is_file else recipe_named(str(source))


Programs = Mapping[str, Callable[[], tuple[Program, Preprocessing | None]]]
"""{label: makes (program, normalisation)}, the first as the source says, then others that take less."""


def _of_recipe(recipe: Recipe, settings: Fit) -> Programs:
    """Return the programs of a recipe, with random weights: at its bits, and at fewer."""
    if not recipe.quantized:
        raise ValueError(f"recipe is {str(settings.source)!r}, which is float; expected one with quantized weights")
    data: Any = recipe.data
    if settings.root is not None and hasattr(data, "root"):
        data = replace(data, root=settings.root)
    recipe = replace(recipe, data=data, network=recipe.network.without_weights())
    torch.manual_seed(0)
    field = make_field(recipe, torch.device("cpu"))
    example = field.example
    if example is None:
        raise ValueError(f"recipe is {str(settings.source)!r}, of questions; expected one of images")
    network, batches = field.network(), field.calibration()[:1]
    pixels = _pixels(getattr(field, "test", None), settings)
    quants = {f"W{recipe.quant.weight_bits}A{recipe.quant.act_bits}": recipe.quant}
    for bits in FEWER:
        if bits < max(recipe.quant.weight_bits or 32, recipe.quant.act_bits or 32):
            quants[f"W{bits}A{bits}"] = replace(recipe.quant.at(bits), weight_bits=bits)
    label, fewest = list(quants.items())[-1]
    for bits in ADDITIONS:
        if (recipe.quant.residual_bits or 0) > bits:
            quants[f"{label}, additions at {bits} bits"] = replace(fewest, residual_bits=bits)
    return {
        label: lambda quant=quant, x=example: (lower(quant.calibrated(network, batches).eval(), x), pixels)
        for label, quant in quants.items()
    }


def _of_source(settings: Fit) -> Programs:
    """Return the programs of a run or a file: as it is, and with activations of fewer bits."""
    source = open_source(settings.source, settings.root, network=settings.network)
    program = source.program
    if program is None:
        if source.model is None:
            raise source.network_needed("plan its memory")
        example = example_of(source)
        if not isinstance(example, Tensor):
            raise ValueError(f"{source.path} takes tokens; expected a network of images")
        program = lower(source.model, example)
    pixels = _pixels(source.test_set(settings.root) if settings.preprocessing else None, settings)
    trained = min(program.act_bits)
    programs: dict[str, Callable[[], tuple[Program, Preprocessing | None]]] = {
        str(settings.source): lambda: (program, pixels)
    }
    for bits in FEWER:
        if bits < trained:
            programs[f"--act-bits {bits}"] = lambda bits=bits: (
                at_width(program, bits),
                pixels,
            )
    return programs


def _pixels(test: Any, settings: Fit) -> Preprocessing | None:
    if not settings.preprocessing:
        return None
    if not isinstance(test, ImageSet):
        raise ValueError("preprocessing is for a recipe's images; the source has none")
    return tuple(test.mean), tuple(test.std)


def _fits(took: Footprint, room: Mapping[str, int | None]) -> bool:
    return all(there is None or getattr(took, kind) <= there for kind, there in room.items())


def _others(programs: Programs, room: Mapping[str, int | None]) -> dict[str, Footprint]:
    """Return what the other programs take, up to the first that fits."""
    others: dict[str, Footprint] = {}
    for label in list(programs)[1:]:
        others[label] = footprint(*programs[label]())
        if _fits(others[label], room):
            break
    return others


def _table(took: Footprint, room: Mapping[str, int | None]) -> Table:
    parts = {
        "flash": f"{took.constants:,} of constants, {CODE:,} kept for code",
        "ram": f"{took.arena:,} of arena, {took.scores:,} of scores, {STACK:,} kept for the stack",
    }
    table = Table("", "bytes", "there is", "", "of which")
    for column in table.columns[1:3]:
        column.justify = "right"
    for kind, there in room.items():
        need = getattr(took, kind)
        verdict = "" if there is None else "fits" if need <= there else f"{need - there:,} too much"
        table.add_row(kind, f"{need:,}", "" if there is None else f"{there:,}", verdict, parts[kind])
    return table


def _advice(took: Footprint, room: Mapping[str, int | None], others: Mapping[str, Footprint]) -> list[str]:
    """Return lines on what would make it fit."""
    last = list(others.items())[-1:]
    if last and _fits(last[0][1], room):
        label, other = last[0]
        return [f"it would fit with {label}: flash {other.flash:,}, ram {other.ram:,}"]
    lines = [f"not with {label} either: flash {other.flash:,}, ram {other.ram:,}" for label, other in last]
    if room["ram"] is not None and took.ram > room["ram"]:
        names = " and ".join(name for name, _ in took.peak[:2])
        lines.append(f"memory: smaller images, or fewer channels at {names}")
    if room["flash"] is not None and took.flash > room["flash"]:
        name = max(took.layers, key=lambda layer: took.layers[layer])
        lines.append(f"flash: fewer bits or channels in {name}, the largest layer")
    return lines


def _facts(took: Footprint) -> dict[str, Any]:
    return {"flash": took.flash, "ram": took.ram, "code": CODE, "stack": STACK, **asdict(took)}
