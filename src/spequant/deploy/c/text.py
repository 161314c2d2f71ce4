"""The source text of a C program: the kernels that it uses, constants, calls in their order, header and build file."""

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from spequant.deploy.c.emitter import CEmitter, Table
from spequant.deploy.c.manifest import kernel
from spequant.deploy.c.moves import DIGITS
from spequant.deploy.c.rounding import Rounding, Sum
from spequant.deploy.c.tensors import Call, Tensor

NEEDS = {
    "conv": ("words", "rounding", "sum"),
    "add": ("words", "sum"),
    "mul": ("words", "rounding"),
    "pool": ("words", "rounding"),
    "move": ("words",),
    "fill": ("words",),
    "round": ("words", "rounding"),
    "clamp": ("words",),
    "rounding": ("floor",),
    "sum": ("floor",),
}
"""{kernel: parts that have to stand before it}"""
PRELUDE = ("types", "floor", "words", "rounding", "sum")
LINE = 116


GATHERED = {
    1: ("sum = 0", "        sum += x[i];", "    sums[0] = sum;"),
    2: (
        "low = 0, high = 0",
        "        low += x[i] & 0xFFFFu;\n        high += x[i] >> 16;",
        "    sums[0] = low;\n    sums[1] = high;",
    ),
    4: (
        "even = 0, odd = 0",
        "        even += x[i] & 0x00FF00FFu;\n        odd += (x[i] >> 8) & 0x00FF00FFu;",
        "    sums[0] = even & 0xFFFFu;\n    sums[1] = odd & 0xFFFFu;\n"
        "    sums[2] = even >> 16;\n    sums[3] = odd >> 16;",
    ),
}
"""{positions: variables, what is done with each word, and at the end} of their sums of codes"""


def gather(lanes: int) -> str:
    """The kernels that gather windows of `lanes` positions, and sum them."""
    spaced = 32 // lanes
    codes = " | ".join(f"((uint32_t)*rows[{i}] << {spaced * i})" if i else "(uint32_t)*rows[0]" for i in range(lanes))
    first, each, last = GATHERED[lanes]
    ones = f"0x{sum(1 << spaced * i for i in range(lanes)):X}u"
    values = {"LANES": str(lanes), "ONES": ones, "CODES": codes, "FIRST": f", {first}", "SUM": each, "SUMS": last}
    return _filled(kernel("gather"), values)


def dot(lanes: int, sums: int, bits: int) -> str:
    """The kernel of products of weights of `bits` with codes of `lanes` positions, whose sums have `sums` bits."""
    if not paired_lanes(lanes, bits):
        return _plain(lanes, bits)
    per = 32 // bits
    half, load = per // 2, _loaded(4, "uint32_t")
    mask = 0x10001 * (2**bits - 1)
    products = []
    for i in range(half):
        products.append(f"const uint32_t w{i} = {f'(w >> {i * bits})' if i else 'w'} & 0x{mask:X}u;")
        products.append(f"first = net_pair(x[{i}], w{i}, first);")
        products.append(f"second = net_pair(x[{i + half}], w{i}, second);")
    return _filled(
        kernel("paired"),
        {"PRODUCTS": "\n".join(f"        {line}" for line in products), "LOAD": load, "NAME": named(lanes, sums, bits)}
        | {"PLAIN": kernel("wide") if sums == 32 else _plain(lanes, bits), "BITS": bits, "BLOCK": per, "HALF": half}
        | {"MASK": f"0x{2**bits - 1:X}u"},
    )


def named(lanes: int, sums: int, bits: int) -> str:
    """Of a kernel of `dot`, without its first word."""
    return f"{'wide' if lanes == 2 and sums == 32 else 'dot'}{lanes}_w{bits}"


def total_of(lanes: int, sums: int, bits: int) -> str:
    """The kernel of sums of codes that belongs to one of `dot`, without its first word."""
    return f"total2_{named(lanes, sums, bits)}" if paired_lanes(lanes, bits) else f"total{lanes}"


def paired_lanes(lanes: int, bits: int) -> bool:
    """Whether a kernel of `dot` makes two products at once where the core can."""
    return lanes == 2 and 8 % bits == 0


def _loaded(size: int, word: str) -> str:
    """`size` bytes of weights as a word."""
    return " | ".join(f"(({word})weights[{i}] << {8 * i})" if i else f"({word})weights[0]" for i in range(size))


def _filled(text: str, values: Mapping[str, object]) -> str:
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _plain(lanes: int, bits: int) -> str:
    """By multiplication of words alone."""
    count = 8 // int(np.gcd(8, bits))
    size = count * bits // 8
    word = "uint32_t" if size <= 4 else "uint64_t"
    mask = f"0x{2**bits - 1:X}u"
    products = []
    for i in range(count):
        weight = f"(w >> {i * bits})" if i else "w"
        weight = f"({weight} & {mask})" if (i + 1) * bits < 8 * size or word == "uint64_t" else weight
        weight = f"(uint32_t){weight}" if word == "uint64_t" else weight
        products.append(f"sum += x[{i}] * {weight};")
    indent = " " * (8 if lanes == 1 else 12)
    values = {"BITS": bits, "WORD": word, "LOAD": _loaded(size, word), "BYTES": size, "COUNT": count}
    lines = "\n".join(indent + line for line in products)
    return _filled(kernel(f"dot{lanes}"), {"PRODUCTS": lines, **values})


class Name(str):
    """A function of the program."""


class Constants:
    """Constants of a program, those of equal content once. size: bytes of their arrays."""

    def __init__(self, layer: str = ""):
        self.lines: list[str] = []
        self.names: dict[str, str] = {}
        self.size = 0
        self.count = 0

    def name(self, kind: str, body: str, array: bool, size: int = 0) -> str:
        """The name of a constant of this type and content."""
        key = f"{kind} {body}"
        if key not in self.names:
            self.names[key] = constant = f"net_{kind.removeprefix('net_').removesuffix('_t')}_{self.count}"
            self.count += 1
            self.size += size
            self.lines.append(f"static const {kind} {constant}{'[]' if array else ''} = {body};")
        return self.names[key]

    def table(self, table: Table) -> str:
        return self.name(table.kind, _braces(str(int(v)) for v in table.values.flatten()), True, table.size)

    def rounding(self, r: Rounding) -> str:
        parts: dict[str, Any] = {"bits": r.bits, "by_channel": int(r.outputs > 1)}
        if r.steps is not None:
            kind, name = ("int16_t", "near_steps") if r.short else ("int32_t", "steps")
            never = 2**15 - 1 if r.short else 2**31 - 1
            parts[name] = Table(kind, np.minimum(r.steps, never))
        else:
            parts |= {"low": r.low, "top": r.top, "even": int(r.even)}
            parts["multipliers"] = Table("int32_t", r.multipliers)
            parts["offsets"] = Table("int64_t", r.offsets)
            parts["shifts"] = Table("uint8_t", r.shifts)
        return self.name("net_rounding", self.record(parts), False)

    def record(self, values: dict[str, Any]) -> str:
        """A structure's initializer; zeros and None are left out."""
        entries = [f".{name} = {text}" for name, value in values.items() if (text := self.field(value)) is not None]
        return _braces(entries or ["0"])

    def field(self, value: Any) -> str | None:
        """None: what is left out is zero."""
        if value is None or (isinstance(value, int) and not value):
            return None
        if isinstance(value, Tensor):
            return _place(value)
        if isinstance(value, Table):
            return self.table(value)
        if isinstance(value, Rounding):
            return f"&{self.rounding(value)}"
        if isinstance(value, Sum):
            parts = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in ("unequal", "exceptions")}
            if value.exceptions is not None:
                parts |= {"count": len(value.exceptions), "exceptions": Table("uint8_t", value.exceptions)}
            return f"&{self.name('net_sum', self.record(parts), False)}"
        if isinstance(value, list):
            rows = [self.record({f.name: getattr(r, f.name) for f in fields(r)}) for r in value if is_dataclass(r)]
            return self.name("net_result", _braces(rows), True)
        if isinstance(value, Name):
            return value
        return _braces(map(str, value)) if isinstance(value, tuple) else str(value)


def _place(t: Tensor) -> str:
    parts = {"offset": t.storage.offset, "stride": t.stride, "bits": t.bits, "in_scores": int(t.storage.in_scores)}
    return _braces(f".{name} = {value}" for name, value in parts.items() if value)


def _braces(values: Iterable[str]) -> str:
    """{values}, over several lines where one is too short."""
    values = list(values)
    text = ", ".join(values)
    if len(text) + 60 < LINE:
        return f"{{{text}}}"
    lines, line = [], "   "
    for value in values:
        if len(line) + len(value) + 2 > LINE and line.strip():
            lines.append(line)
            line = "   "
        line += f" {value},"
    return "{\n" + "\n".join([*lines, line]) + "\n}"


def kernels_of(calls: Iterable[Call]) -> list[str]:
    """Texts of all kernels that these call, each after those that it needs."""
    called = sorted({call.kernel for call in calls})
    needed, new = set[str](), {"types", *called}
    while new:
        needed |= new
        new = {part for name in new for part in NEEDS.get(name, ())} - needed
    texts = [kernel(name) for name in PRELUDE if name in needed]
    texts += [kernel(name).replace("@DIGITS@", str(DIGITS)) for name in called]
    dots: Any = sorted({call.fields["dot"] for call in calls if call.kernel == "conv"})  # type: ignore[type-var]
    lanes = sorted({how[0] for how in dots})
    texts += [gather(n) for n in lanes] + [kernel("pairs")] * any(paired_lanes(n, bits) for n, _, bits in dots)
    return texts + [dot(*how) for how in dots]


def source(e: CEmitter, arena: int) -> tuple[str, int]:
    """(text of the .c file but for its first lines, bytes of constant arrays); names begin with net_."""
    constants, lines = Constants(), []
    for i, call in enumerate(e.calls):
        values = dict(call.fields)
        if call.kernel == "conv":
            how: Any = values["dot"]
            values |= {"gather": Name(f"net_gather{how[0]}"), "total": Name(f"net_{total_of(*how)}")}
            values |= {"dot": Name(f"net_{named(*how)}"), "scratch": call.scratch_offset}
        body = constants.record(values)
        constant = f"net_call_{i}"
        constants.lines.append(f"/* {call.name} */\nstatic const net_{call.kernel} {constant} = {body};")
        lines.append(f"    net_run_{call.kernel}(&{constant}, &memory);\n    NET_DONE({i})")
    parts = [*kernels_of(e.calls), "\n".join(constants.lines), _entry("\n".join(lines))]
    return "\n".join(parts), constants.size


def _entry(calls: str) -> str:
    return f"""
int net_run(const void *input, int32_t *scores, uint32_t *arena, size_t arena_size)
{{
    net_memory memory;
    if (input == NULL || scores == NULL || arena == NULL) {{
        return NET_ERROR_NULL;
    }}
    if (arena_size < NET_ARENA_SIZE) {{
        return NET_ERROR_ARENA;
    }}
    memory.arena = arena;
    memory.scores = scores;
    memory.input = (const uint8_t *)input;
{calls}
    return NET_OK;
}}

size_t net_best(const int32_t *scores, size_t count)
{{
    size_t i, best = 0;
    for (i = 1; i < count; i++) {{
        best = scores[i] > scores[best] ? i : best;
    }}
    return best;
}}
"""
