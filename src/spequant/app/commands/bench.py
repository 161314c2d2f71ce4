"""Settings of the commands bench train and bench infer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

Clock = Literal["wall", "processor"]
EngineName = Literal["onnxruntime", "openvino", "litert"]


@dataclass(frozen=True)
class BenchTrain:
    """Time training steps: float, Retrain, SPEQ and others, each compiled and eager.

    Each round runs two steps of every row and times the second. With --at-once it runs five, and takes the mean of the
    last four in the slowest process. The median over the rounds is printed.
    """

    network: str = "resnet20"
    """a network of the recipes; one of your own: package.module:Object or file.py:Object; bert6 or bert12: so many
    layers of BERT-base, which has 12, on 128 tokens"""
    batch: int = 128
    """images, or sequences, per step"""
    size: int = 32
    """side of the images, pixels"""
    bits: int = 2
    """of weights and activations; the first and the last layer and addends have 8"""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """autocast of the steps; quantization stays fp32"""
    rows: tuple[str, ...] = ()
    """names of the rows; none: all. float is always measured"""
    rounds: int = 10
    """number of measurements of each row"""
    steps: int = 0
    """further steps of each row, to see that they add no graphs"""
    at_once: int = 1
    """adds to each row one of so many processes that train side by side, with the threads divided among them"""
    compile: bool = True
    """if False, every row is eager"""
    cuda_graphs: bool = False
    """on a GPU, replay compiled steps as CUDA graphs"""
    threads: int | None = None
    """threads of torch on the CPU; None: as many as torch chooses"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N"""
    quick: FlagCreatePairsOff[bool] = False
    """only float and retrain, three rounds, of resnet8 in place of resnet20"""
    json: Path | None = None
    """a file for the rows as JSON"""


@dataclass(frozen=True)
class Infer:
    """Time inference of a run, a packed file, an integer ONNX file or a .tflite file; without one, of a network with
    random weights.

    Each round runs every graph once; the median over the rounds is printed. Networks for questions are timed in their
    mixed form (export --to mixed); a .tflite file next to the same network in fp32 and at 8 bits.
    """

    source: Annotated[Path | None, Positional, arg(metavar="[RUN|FILE]")] = None
    """a run's folder, a packed file, or one of --to onnx or tflite"""
    network: str | None = None
    """without a source: a network of the recipes, or one of your own, package.module:Object or file.py:Object; None:
    resnet18. With a file made in Python: what makes its float network"""
    arrays: Path | None = None
    """of a packed file made in Python: an .npz with the array inputs, as its network takes them, or
    inputs by name"""
    size: int = 224
    """without a source: side of the images, pixels"""
    bits: tuple[int, ...] = ()
    """without a source: widths of weights and activations of that network; none: 2"""
    act_bits: tuple[int, ...] = ()
    """widths of the activations that a source was trained with at its recipe's act_bits; none: as trained"""
    engines: tuple[EngineName, ...] = ()
    """engines that run the graphs; none: onnxruntime and openvino, of a .tflite file litert"""
    length: int | None = None
    """tokens of a window, of a source for questions; None: its data.max_length"""
    batch: int = 1
    """images, or windows of questions, per run of a graph"""
    threads: int = 1
    """threads of each engine"""
    rounds: int = 30
    """number of measurements of each graph"""
    clock: Clock = "wall"
    """wall: the time that passes; processor: the time that this process computes, all threads together, for ratios on a
    machine that others use, too"""
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Path | None = None
    """a file for the rows as JSON"""
