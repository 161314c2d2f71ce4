"""What the command zoo prints: trained networks that come with the library."""

from statistics import mean
from typing import Any

from rich.table import Table

from spequant.app.commands.screen import print_table
from spequant.app.commands.zoo import Zoo
from spequant.deploy.zoo import card_of, names
from spequant.files import destination, write_json


def print_zoo(settings: Zoo) -> None:
    """Print a table of all networks, or the card of one; write the cards as JSON.

    Raises:
        ValueError: There is no such network.
    """
    if settings.json is not None:
        destination(settings.json)
    cards = [card_of(name) for name in ([settings.name] if settings.name else names())]
    print_table(_card(cards[0]) if settings.name else _listing(cards))
    write_json(settings.json, cards)


def _listing(cards: list[dict[str, Any]]) -> Table:
    table = Table("network", "bits", "test accuracy, %", "float, %", "bytes", "float, bytes")
    for column in table.columns[2:]:
        column.justify = "right"
    for card in cards:
        table.add_row(
            f"zoo/{card['name']}",
            _bits(card),
            f"{card['test_accuracy'][str(card['seed'])]:.2f}",
            f"{card['float_test_accuracy']:.2f}",
            f"{card['bytes']:,}",
            f"{card['float_bytes']:,}",
        )
    return table


def _card(card: dict[str, Any]) -> Table:
    table = Table(f"zoo/{card['name']}", card["title"])
    accuracies = card["test_accuracy"]
    seeds = ", ".join(f"{value:.2f}{' (the file)' * (seed == str(card['seed']))}" for seed, value in accuracies.items())
    rows = {
        "network": f"{card['network']['arguments']['name']}, {_bits(card)}",
        "test accuracy, % by seed": f"{seeds}; mean {mean(accuracies.values()):.2f}, of {card['test_images']:,} images",
        "of the float network": f"{card['float_test_accuracy']:.2f}",
        "bytes": f"{card['bytes']:,}; the float network's tensors {card['float_bytes']:,}",
        "made by": f"{card['command']} (recipe {card['recipe']}), {card['date']}",
        "commit": card["commit"],
        "took": f"{card['hours']:g} hours with the float network, {card['processor']}, torch {card['torch']}",
        "sha256": card["sha256"],
        "licence": f"{card['licence']}; {card['data']}",
    }
    if card["accuracy_at"]:
        widths = ", ".join(f"A{bits} {accuracy:.2f}" for bits, accuracy in card["accuracy_at"].items())
        rows["test accuracy of the file, %"] = f"{widths} (--act-bits)"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _bits(card: dict[str, Any]) -> str:
    """Such as "W2A2", or "W2A2 to A8" of a file that was trained for several widths of activations."""
    widths = list(card["accuracy_at"])
    return f"W{card['weight_bits']}A{card['act_bits']}" + (f" to A{widths[-1]}" if widths else "")
