import numpy as np
import torch
from scipy.stats import chisquare

from fpsde.batches import SnapshotBatches


def batches(sizes, device, weights=None):
    """Snapshots whose points are numbered from 1000 j on."""
    groups = [1000.0 * j + np.arange(n)[:, None] for j, n in enumerate(sizes)]
    return SnapshotBatches(groups, torch.Generator(device=device).manual_seed(0), device, weights)


def test_points_are_drawn_by_their_weights(device, rng):
    weights = [rng.uniform(0.2, 2, n) for n in (7, 30, 3)]
    t = torch.tensor([0.0, 0.5, 1.0], device=device)
    times, x = batches((7, 30, 3), device, weights).draw(t, 60000)
    assert torch.equal(times, t)
    for j, w in enumerate(weights):
        drawn = np.bincount((x[j, :, 0].cpu().numpy() - 1000 * j).astype(int), minlength=len(w))
        assert chisquare(drawn, w / w.sum() * drawn.sum()).pvalue > 1e-6


def test_equal_weights_draw_the_points_that_none_draw(device):
    sizes, t = (8, 32, 4), torch.linspace(0, 1, 3, device=device)
    plain = batches(sizes, device).draw(t, 900)[1]
    assert torch.equal(batches(sizes, device, [np.ones(n) for n in sizes]).draw(t, 900)[1], plain)


def test_every_point_belongs_to_its_time(device, rng):
    """Of more times than a step takes, and with one point that outweighs all others."""
    weights = [np.where(np.arange(n) == n - 1, 1e9, 1e-9) for n in rng.integers(3, 9, 40)]
    times, x = batches([len(w) for w in weights], device, weights).draw(torch.arange(40.0, device=device), 1600)
    assert x.shape == (16, 100, 1)
    assert torch.equal(x[..., 0], (1000 * times + torch.tensor([len(w) - 1.0 for w in weights]).to(x)[times.long()])[:, None]
                       .expand(-1, 100))


def test_means_are_those_of_repeated_points(device, rng):
    counts = [rng.integers(1, 5, n) for n in (6, 9)]
    x = [rng.normal(size=(len(c), 1)) for c in counts]
    weighted = SnapshotBatches(x, torch.Generator(device=device), device, [c / c.mean() for c in counts])
    repeated = SnapshotBatches([v.repeat(c, 0) for v, c in zip(x, counts, strict=True)], torch.Generator(device=device), device)
    for j in range(2):
        means = [b.mean(j, b.group(j)[:, 0].square()) for b in (weighted, repeated)]
        torch.testing.assert_close(means[0].float(), means[1], rtol=1e-5, atol=1e-6)
