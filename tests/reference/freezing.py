"""The literal twin of `spequant.train.freezing`: algorithm 1 of Nagel et al. 2022, one weight after another."""


class Freezing:
    """`weights`: list of numbers; `encode(weights)` -> their codes, as the quantizer has them at the time."""

    def __init__(self, weights, encode, threshold, momentum):
        self.encode, self.threshold, self.momentum = encode, threshold, momentum
        self.weights, self.codes = list(weights), list(encode(weights))
        self.average = list(self.codes)
        self.frequency, self.direction = [0.0] * len(weights), [0] * len(weights)
        self.frozen = [False] * len(weights)

    def step(self, weights):
        """`weights` as the optimizer left them."""
        self.weights = [mine if f else w for mine, w, f in zip(self.weights, weights, self.frozen, strict=True)]
        codes = self.encode(self.weights)
        for i, code in enumerate(codes):
            if self.frozen[i]:
                continue
            oscillated = 0
            if code != self.codes[i]:
                turn = 1 if code > self.codes[i] else -1
                oscillated = 1 if turn == -self.direction[i] else 0
                self.direction[i] = turn
            self.codes[i] = code
            self.frequency[i] = self.momentum * oscillated + (1 - self.momentum) * self.frequency[i]
            self.average[i] = self.momentum * code + (1 - self.momentum) * self.average[i]
            if self.frequency[i] > self.threshold:
                self.frozen[i] = True
                self.codes[i] = round(self.average[i])
