"""The zoo's maker: every network of the zoo can be made again, and no run takes the folder of another."""

from make_zoo import LICENCES, ZOO
from spequant.deploy.zoo import card_of, names


def test_every_network_of_the_zoo_has_its_entry():
    for name in names():
        entry, card = ZOO[name], card_of(name)
        recipe = entry.low_bit()
        assert (card["title"], card["recipe"]) == (entry.title, recipe.name)
        assert (card["weight_bits"], card["act_bits"]) == (recipe.quant.weight_bits, recipe.quant.act_bits)
        assert card["network"]["arguments"]["name"] == recipe.network.name and card["data"] == LICENCES[entry.data]
        assert list(card["accuracy_at"]) == [str(bits) for bits in entry.widths]


def test_runs_of_one_name_are_of_one_recipe():
    recipes = {}
    for entry in ZOO.values():
        for recipe in (entry.floating(), entry.low_bit()):
            assert recipes.setdefault(recipe.name, recipe) == recipe
