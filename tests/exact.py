"""The formulas once more in 50-digit arithmetic; nothing is shared with the package but the parameters."""

from __future__ import annotations

from mpmath import mp

mp.dps = 50

ACTIVATIONS = {
    "tanh": mp.tanh, "softplus": lambda z: max(z, 0) + mp.log1p(mp.exp(-abs(z))),
    "silu": lambda z: z / (1 + mp.exp(-z)), "sigmoid": lambda z: 1 / (1 + mp.exp(-z)),
}


def numbers(tensor):
    """The entries of a tensor, exactly, as nested lists."""
    def exactly(value):
        return [exactly(v) for v in value] if isinstance(value, list) else mp.mpf(value)

    return exactly(tensor.detach().double().tolist())


def times(row, matrix):
    """A row times a matrix."""
    return [sum((a * b for a, b in zip(row, column, strict=True)), mp.mpf(0)) for column in zip(*matrix, strict=True)]


def plus(*rows):
    return [sum(entries, mp.mpf(0)) for entries in zip(*rows, strict=True)]


class Net:
    """A HollowNet with a leave-one-out conditioner."""

    def __init__(self, net):
        self.p = {name: numbers(value) for name, value in net.named_parameters()}
        self.dim, self.hidden, self.act = net.dim, len(net.shifts), ACTIVATIONS[net.activation]

    def coordinate(self, i, t, x):
        """f_i at a time and a point."""
        p, act = self.p, lambda row: [self.act(z) for z in row]
        clock = [2 * t - 1, *(mp.sin(k * mp.pi * t) for k in (1, 2, 3)), *(mp.cos(k * mp.pi * t) for k in (1, 2, 3))]
        terms = [times(act(plus(times([x[j]], p["conditioner.phi_scale"][j]), p["conditioner.phi_shift"][j][0])),
                       p["conditioner.phi_mix"][j]) for j in range(self.dim) if j != i]
        others = plus(*terms) if terms else [mp.mpf(0)] * len(p["conditioner.rho_shift"][i][0])
        h = plus(times(others, p["conditioner.rho_mix"][i]), p["conditioner.rho_shift"][i][0])
        z = plus(times([x[i]], p["own"][i]), p["shifts.0"][i][0])
        if "clock" in p:
            h = plus(h, times(clock, p["conditioner.rho_time"][i]))
            z = plus(z, times(clock, p["clock"][i]))
        layer = act(plus(z, times(act(h), p["others"][i])))
        for k in range(1, self.hidden):
            layer = act(plus(times(layer, p[f"layers.{k - 1}"][i]), p[f"shifts.{k}"][i][0]))
        return sum(map(mp.fmul, layer, p["readout"][i])) + sum(map(mp.fmul, x, p["matrix"][i])) + p["offset"][i]


class Mixture:
    """A Gaussian mixture path: splines by Cox and de Boor's recursion, covariances by elimination."""

    def __init__(self, path):
        state = {name: numbers(value) for name, value in path.state_dict().items()}
        breaks = state["basis.breaks"]
        self.knots = [breaks[0]] * 3 + breaks + [breaks[-1]] * 3
        units, self.logits, self.constant = state["covariance.units"], state["logits"], path.constant_weights
        self.means = [[[m * u for m, u in zip(mean, unit, strict=True)] for mean in row]
                      for row, unit in zip(state["means"], units, strict=True)]
        self.factors = [[[[v * u for v in line] for line, u in zip(f, unit, strict=True)] for f in row]
                        for row, unit in zip(state["covariance.factors"], units, strict=True)]
        self.floor, self.rest = state["covariance.floor"], state.get("covariance.log_rest")

    def basis(self, t):
        knots, last = self.knots, len(self.knots) - 2
        while knots[last] == knots[-1]:
            last -= 1
        values = [mp.mpf(knots[j] <= t < knots[j + 1] or (j == last and t == knots[-1])) for j in range(len(knots) - 1)]
        for degree in (1, 2, 3):
            def share(j, s, degree=degree):
                width = knots[j + degree] - knots[j]
                return s / width if width else mp.mpf(0)

            values = [share(j, t - knots[j]) * values[j] + share(j + 1, knots[j + degree + 1] - t) * values[j + 1]
                      for j in range(len(values) - 1)]
        return values

    def covariance(self, b, k):
        """Of component k, from the values of the splines."""
        dim = len(self.means[0][0])
        total = mp.zeros(dim)
        if self.rest is None:
            for value, factors, floor in zip(b, self.factors, self.floor, strict=True):
                lower = mp.matrix([[v if j <= i else 0 for j, v in enumerate(row)] for i, row in enumerate(factors[k])])
                total += value * (lower * lower.T + mp.matrix(floor))
            return total
        columns = mp.zeros(dim, len(self.factors[0][0][0]))
        for value, factors, rest, floor in zip(b, self.factors, self.rest, self.floor, strict=True):
            columns += value * mp.matrix(factors[k])
            total += value * mp.diag([mp.exp(r) + f for r, f in zip(rest[k], floor, strict=True)])
        return total + columns * columns.T

    def parts(self, t, x):
        """Log of each component's share in the density at a point, and its squared distance."""
        b = self.basis(t)
        logits = self.logits[0] if self.constant else times(b, self.logits)
        total, result = mp.log(sum(map(mp.exp, logits))), []
        for k, logit in enumerate(logits):
            mean = times(b, [row[k] for row in self.means])
            offset, covariance = mp.matrix([v - m for v, m in zip(x, mean, strict=True)]), self.covariance(b, k)
            square = (offset.T * mp.lu_solve(covariance, offset))[0]
            height = mp.log(mp.det(covariance)) + len(x) * mp.log(2 * mp.pi)
            result.append((logit - total - (square + height) / 2, square))
        return result

    def log_prob(self, t, x):
        logs = [log for log, _ in self.parts(t, x)]
        return max(logs) + mp.log(sum(mp.exp(log - max(logs)) for log in logs))


def along(function, x, i):
    """A function of a point as one of its coordinate i."""
    return lambda v: function([*x[:i], v, *x[i + 1:]])


def derivative(function, x, order=1):
    """By differences, with the digits that they cost added."""
    return mp.diff(function, x, order)
