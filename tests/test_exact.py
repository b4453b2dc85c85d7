import numpy as np
import pytest

from pipeline.encoders.exact import orthonormal, product, symmetric_eigen


def test_a_product_of_whole_numbers():
    left, right = np.array([[1.0, 2.0], [-3.0, 0.5]]), np.array([[4.0, 0.0], [1.0, -8.0]])
    np.testing.assert_array_equal(product(left, right), [[6, -16], [-11.5, -4]])
    zero = product(np.array([[-1.0, 0.0]]), np.zeros((2, 1)))
    assert zero == 0 and not np.signbit(zero)


def test_products_are_accurate_and_do_not_depend_on_the_order_of_sums():
    rng = np.random.default_rng(0)
    left = rng.standard_normal((40, 2048)) * np.exp(4 * rng.standard_normal((40, 1)))
    right = rng.standard_normal((2048, 30)) * np.exp(4 * rng.standard_normal(30))
    found = product(left, right)
    bound = np.abs(left).max(axis=1, keepdims=True) * np.abs(right).max(axis=0) * 2048 * 2.0**-40
    assert (np.abs(found - left @ right) < bound).all()
    for _ in range(5):
        order = rng.permutation(2048)
        np.testing.assert_array_equal(product(left[:, order], right[order]), found)
    np.testing.assert_array_equal(product(left[7:8], right), found[7:8])  # of one row alone


@pytest.mark.parametrize(("size", "rank"), [(1, 1), (2, 2), (30, 30), (30, 4), (200, 200)])
def test_eigenvectors_are_those_of_lapack(size, rank):
    rng = np.random.default_rng(size)
    factors = rng.standard_normal((size, rank)) * np.linspace(1, 3, rank)
    matrix = factors @ factors.T
    values, vectors = symmetric_eigen(matrix, min(size, 12))
    expected = np.linalg.eigvalsh(matrix)[::-1][: len(values)]
    np.testing.assert_allclose(values, expected, atol=1e-12 * expected[0])
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(values)), atol=1e-13)
    np.testing.assert_allclose(vectors @ matrix, values[:, None] * vectors, atol=1e-12 * expected[0])


def test_eigenvalues_of_a_known_matrix():
    values, vectors = symmetric_eigen(np.array([[2.0, 1.0], [1.0, 2.0]]), 2)
    np.testing.assert_allclose(values, [3, 1], rtol=1e-15)
    np.testing.assert_allclose(np.abs(vectors), np.sqrt(0.5), rtol=1e-15)
    for matrix in (np.zeros((3, 3)), np.diag([5.0, 5.0, 5.0])):  # nothing to reduce, nothing to turn
        values, vectors = symmetric_eigen(matrix, 3)
        np.testing.assert_array_equal(values, matrix.diagonal())
        np.testing.assert_array_equal(vectors, np.eye(3))


def test_orthonormal_columns_span_the_same_in_order():
    columns = np.random.default_rng(0).standard_normal((50, 12))
    basis = orthonormal(columns)
    q, r = np.linalg.qr(columns)
    np.testing.assert_allclose(basis, q * np.sign(np.diag(r)), atol=1e-13)
    np.testing.assert_allclose(basis.T @ basis, np.eye(12), atol=1e-14)
