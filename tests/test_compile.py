"""Under torch.compile: 40 random draws, two graphs. In a process of its own, for counters that start at zero."""

import subprocess
import sys

SCRIPT = """
import copy, torch, torch._dynamo, spequant
from spequant.models import resnet8
from spequant.quantizers import PACT, SAWB
torch.set_num_threads(1)
torch.manual_seed(0)
# Not the calibration's own images: those hold a value on a rounding tie, which eager and compiled sums take either way.
images, labels = torch.randn(2, 16, 3, 8, 8), torch.randint(0, 10, (16,))
batch = images[1], labels
model = spequant.prepare(resnet8(), weight=SAWB(2), act=PACT(2))
spequant.calibrate(model, [images[0]], samples=16)
eager = copy.deepcopy(model)
compiled = torch.compile(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
methods = spequant.SPEQ(), spequant.SPEQ()
for step in range(40):
    losses = methods[0](compiled, batch)
    if step == 0:
        other = methods[1](eager, batch)
        assert abs(float(losses.total.detach() - other.total.detach())) < 1e-4, (losses, other)
    losses.total.backward()
    optimizer.step()
    optimizer.zero_grad()
print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


def test_forty_draws_make_two_graphs():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "graphs 2"
