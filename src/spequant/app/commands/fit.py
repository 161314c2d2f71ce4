"""Settings of the command fit, and the boards that it knows."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg


@dataclass(frozen=True)
class Board:
    """Flash and memory of a board, bytes, and where these numbers stand."""

    flash: int
    ram: int
    source: str


K, M = 1024, 1024**2
BOARDS = {
    "arduino-uno": Board(32 * K, 2 * K, "Microchip, ATmega328P data sheet"),
    "arduino-mega": Board(256 * K, 8 * K, "Microchip, ATmega2560 data sheet"),
    "arduino-nano-33-ble": Board(1 * M, 256 * K, "Nordic Semiconductor, nRF52840 product specification"),
    "microbit-v2": Board(512 * K, 128 * K, "Nordic Semiconductor, nRF52833 product specification"),
    "longan-nano": Board(128 * K, 32 * K, "GigaDevice, GD32VF103 data sheet (GD32VF103CB)"),
    "nucleo-f103rb": Board(128 * K, 20 * K, "STMicroelectronics, STM32F103xB data sheet"),
    "nucleo-l432kc": Board(256 * K, 64 * K, "STMicroelectronics, STM32L432KC data sheet"),
    "nucleo-f446re": Board(512 * K, 128 * K, "STMicroelectronics, STM32F446xC/E data sheet"),
    "stm32f746g-disco": Board(1 * M, 320 * K, "STMicroelectronics, STM32F746xG data sheet (system memory)"),
    "nucleo-h743zi": Board(2 * M, 512 * K, "STMicroelectronics, STM32H743xI data sheet (its largest block, AXI SRAM)"),
    "esp32-c3": Board(4 * M, 400 * K, "Espressif, ESP32-C3 data sheet; flash of the module ESP32-C3-MINI-1"),
    "raspberry-pi-pico": Board(2 * M, 264 * K, "Raspberry Pi, RP2040 and Pico data sheets"),
    "raspberry-pi-pico-2": Board(4 * M, 520 * K, "Raspberry Pi, RP2350 and Pico 2 data sheets"),
}
"""Whole memories: what else runs on a board takes its share. Kilobytes are of 1,024 bytes."""


@dataclass(frozen=True)
class Fit:
    """Whether a network fits a board as C (--to c): bytes of flash and memory, before any training too.

    The exit status is 1 where it does not fit. A recipe is measured with random weights, calibrated.
    """

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE|RECIPE")]
    """a run's folder, a packed or integer ONNX file, zoo/NAME; or a recipe by name, NAME.json or file.py:function"""
    board: Literal[tuple(BOARDS)] | None = None  # type: ignore[valid-type]
    """the board whose flash and memory are there"""
    flash: str | None = None
    """bytes of flash, e.g. 256K or 1M; None: the board's"""
    ram: str | None = None
    """bytes of memory, e.g. 64K; None: the board's"""
    preprocessing: FlagCreatePairsOff[bool] = False
    """the program takes uint8 images, as with `export --preprocessing`"""
    root: Path | None = None
    """folder of the data set; None: the recipe's, or SPEQUANT_DATA"""
    network: Annotated[str | None, arg(help="of a packed file made in Python: what makes its float network")] = None
    json: Path | None = None
    """a file for the numbers as JSON"""

    @property
    def flash_bytes(self) -> int | None:
        """Flash, in bytes; None: nothing is said of it."""
        return bytes_of("flash", self.flash) if self.flash else BOARDS[self.board].flash if self.board else None

    @property
    def ram_bytes(self) -> int | None:
        """Memory, in bytes; None: nothing is said of it."""
        return bytes_of("ram", self.ram) if self.ram else BOARDS[self.board].ram if self.board else None


def bytes_of(argument: str, text: str) -> int:
    """Return the bytes that `text` says: "4096", "256K" or "1M".

    Raises:
        ValueError: It is no such number.
    """
    match = re.fullmatch(r"(\d+)\s*([kKmM]?)(?:i?[bB])?", text.strip())
    if match is None or not int(match[1]):
        raise ValueError(f"{argument} is {text!r}; expected bytes, e.g. 65536, 64K or 1M")
    return int(match[1]) * {"": 1, "k": K, "m": M}[match[2].lower()]
