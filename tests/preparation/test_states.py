"""Tensors of a prepared network by the names of the float one, and those of its quantizers by number."""

import pytest
import torch

import spequant
from spequant.preparation.description import describe, prepare_as
from spequant.preparation.states import load_quantizers, stored_state
from spequant.quantizers import LSQ, PACT, percentile
from support.attention import Attending


def prepared():
    torch.manual_seed(0)
    network, x = Attending().eval(), torch.randn(8, 5, 8)
    model = spequant.prepare(network, weight=LSQ(3), act=PACT(3), products=4)
    spequant.calibrate(model, [x], samples=8, rule=percentile(99.9))
    return network, model.eval(), x


def test_names_are_those_of_the_float_network_and_each_quantizer_is_stored_once():
    network, model, x = prepared()
    float_network, state = stored_state(model)
    stored = {name for name in state if not name.startswith("spequant.")}
    assert stored == network.state_dict().keys() == float_network.state_dict().keys()
    assert state["stem.weight"].data_ptr() == model.stem.layer.weight.data_ptr()  # nothing was copied
    numbers = {int(name.split(".")[1]) for name in state.keys() - stored}
    assert numbers == set(range(len(describe(model)["quantizers"])))
    again = prepare_as(network, describe(model))
    load_quantizers(again, describe(model)["slots"], state)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))


@pytest.mark.slow
def test_tensors_that_do_not_fit_are_named():
    network, model, _ = prepared()
    again, state = prepare_as(network, describe(model)), stored_state(model)[1]
    slots = describe(model)["slots"]
    without = {name: tensor for name, tensor in state.items() if name != "spequant.1.clip"}
    with pytest.raises(ValueError, match=r"stem\.act_quantizer \(spequant\.1\).*clip"):
        load_quantizers(again, slots, without)
    other = stored_state(spequant.prepare(network, weight=LSQ(4), act=PACT(3), products=4))[1]
    with pytest.raises(ValueError, match=r"4 bits, .* 3"):
        load_quantizers(again, slots | {"attention.q.weight_quantizer": slots["attention.q.weight_quantizer"]}, other)
