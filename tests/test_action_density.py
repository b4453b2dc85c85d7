import numpy as np
import pytest
from scipy.stats import norm

from pipeline.outcomes.action_density import ActionDensity, atom_widths, deviations, kernel, logged_density

NO_ATOMS = np.zeros((1, 2))


def integral(centre, bandwidth, widths):
    """Integral of the kernel around a centre [A], A at most 2, over the inside and the atoms at the bounds."""
    points = (np.arange(400) + 0.5) / 400
    measured = [
        (np.concatenate([points, [0.0, 1.0]]), np.concatenate([np.full(400, 1 / 400), of_axis])) for of_axis in widths
    ]
    grid = np.stack(np.meshgrid(*(points for points, _ in measured), indexing="ij"), -1)
    mass = measured[0][1] if len(measured) == 1 else np.multiply.outer(measured[0][1], measured[1][1])
    return float((kernel(grid.reshape(-1, len(widths)), np.array(centre), bandwidth, widths) * mass.reshape(-1)).sum())


@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.0, 0.3), (1.0, 1.0), (0.02, 0.98)])
@pytest.mark.parametrize("widths", [np.zeros((2, 2)), np.array([[0.3, 0.0], [0.05, 1.0]])], ids=["plain", "atoms"])
def test_the_kernel_integrates_to_one_wherever_its_centre_is(centre, widths):
    assert integral(centre, np.array([0.1, 0.25]), widths) == pytest.approx(1, abs=1e-3)


def test_the_kernel_by_hand():
    """A normal of bandwidth 0.1 has height 3.989; twice that at an edge, four times at a corner of two actions."""
    peak = norm.pdf(0) / 0.1
    bandwidth = np.array([0.1, 0.1])

    def height(x, y):
        return float(kernel(np.array([x, y]), np.array([x, y]), bandwidth, np.zeros((2, 2))))

    assert height(0.5, 0.5) == pytest.approx(peak**2, rel=1e-4)
    assert height(1.0, 0.5) == pytest.approx(2 * peak**2, rel=1e-4)
    assert height(1.0, 0.0) == pytest.approx(4 * peak**2, rel=1e-4)


def test_a_bound_is_an_atom_only_if_actions_were_logged_at_it():
    rng = np.random.default_rng(0)
    cut = np.clip(rng.normal(1.0, 0.15, 4000), 0, 1)  # half of it at 1, density 2.66 before it
    widths = atom_widths(np.stack([cut, rng.random(4000)], 1))
    assert widths[0, 0] == 0 and (widths[1] == 0).all()
    assert widths[0, 1] == pytest.approx(0.5 / (0.5 - norm.cdf(-1)) * 0.15, abs=0.03)
    assert atom_widths(np.array([[1.0], [0.5], [0.4]]))[0, 1] == 0, "one step at a bound is chance"
    assert np.isfinite(atom_widths(np.array([[1.0], [1.0], [0.4]]))).all(), "none near the atom"


def test_weights_are_continuous_at_an_atom():
    """Clipped normals: the kernel over the logged density does not jump at the bound, although the propensity does."""
    rng = np.random.default_rng(1)
    unit = np.clip(rng.normal(0.9, 0.2, 20_000), 0, 1)[:, None]
    widths = atom_widths(unit)
    points = np.array([[1.0], [0.999]])
    propensity = np.array([norm.sf(0.5), norm.pdf(0.495) / 0.2])
    density = logged_density(propensity, points, np.ones(1), widths)
    weights = kernel(points, np.array([1.0]), np.array([0.1]), widths) / density
    assert weights[0] == pytest.approx(weights[1], rel=0.15)


def test_propensities_are_per_unit_of_each_action_but_at_atoms():
    widths = np.array([[0.0, 0.5], [0.0, 0.0]])
    unit = np.array([[0.5, 0.5], [1.0, 0.5], [1.0, 1.0]])
    ranges = np.array([10.0, 4.0])
    density = logged_density(np.array([0.025, 0.05, 0.05]), unit, ranges, widths)
    np.testing.assert_allclose(density, [0.025 * 40, 0.05 * 4 / 0.5, 0.05 * 4 / 0.5])


def test_the_weights_of_cut_logs_have_mean_one():
    """E[K / p] = ∫ K = 1, atoms included, with true propensities and with estimated ones."""
    rng = np.random.default_rng(2)
    raw = rng.normal(0.7, 0.25, 2000)
    unit = np.clip(raw, 0, 1)[:, None]
    z = (unit[:, 0] - 0.7) / 0.25
    true = np.where(unit[:, 0] >= 1, norm.sf(z), np.where(unit[:, 0] <= 0, norm.cdf(z), norm.pdf(z) / 0.25))
    widths = atom_widths(unit)
    zeros = np.zeros(2000, int)
    estimated = ActionDensity(unit, zeros, np.arange(2000), widths)(unit, zeros, np.arange(2000))
    for density in (logged_density(true, unit, np.ones(1), widths), estimated):
        for centre in (1.0, 0.8, 0.3):
            weights = kernel(unit, np.array([centre]), np.array([0.1]), widths) / density
            assert weights.mean() == pytest.approx(1, abs=0.2)


def test_the_estimated_density_of_uniform_actions_is_one_even_at_a_corner():
    rng = np.random.default_rng(3)
    unit, context, video = rng.random((2000, 2)), rng.integers(3, size=2000), np.arange(2000) // 20
    density = ActionDensity(unit, context, video, np.zeros((2, 2)))
    points = np.array([[0.5, 0.5], [0.0, 0.5], [1.0, 0.0], [1.0, 1.0]])
    found = density(points, np.zeros(4, int), np.full(4, -1))
    np.testing.assert_allclose(found, 1, atol=0.25)


def test_contexts_have_their_own_densities_if_steps_suffice():
    rng = np.random.default_rng(4)
    context = np.repeat([0, 1], 500)
    unit = np.clip(rng.normal(np.where(context == 0, 0.3, 0.7), 0.05), 0, 1)[:, None]
    density = ActionDensity(unit, context, np.arange(1000) // 10, NO_ATOMS)
    at_own, at_other = density(np.array([[0.3], [0.3]]), np.array([0, 1]), np.array([-1, -1]))
    assert at_own == pytest.approx(norm.pdf(0) / 0.05, rel=0.25)
    assert at_other < 0.1 * at_own


def test_a_video_does_not_inform_its_own_density():
    """One video repeats an action that no other has; the action's density stays low."""
    rng = np.random.default_rng(5)
    unit = np.concatenate([rng.random(980) * 0.3, np.full(20, 0.95)])[:, None]
    video = np.concatenate([np.arange(980) // 10, np.full(20, 99)])
    density = ActionDensity(unit, np.zeros(1000, int), video, NO_ATOMS)
    point, context = np.array([[0.95]]), np.zeros(1, int)
    assert density(point, context, np.array([99]))[0] < 0.1 * density(point, context, np.array([-1]))[0]


def test_deviations_are_from_the_mean_of_the_context():
    unit = np.array([[0.1], [0.3], [0.9]])
    np.testing.assert_allclose(deviations(unit, np.array([4, 4, 7]))[:, 0], [-0.1, 0.1, 0.0])
