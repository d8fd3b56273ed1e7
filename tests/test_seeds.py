"""Tests of thread limits."""

from threadpoolctl import threadpool_info, threadpool_limits

from latentlab.seeds import one_thread


def blas_threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_one_thread_limits_blas():
    """Waiting for a second thread made products of small matrices five times slower on a busy machine."""
    with threadpool_limits(2, user_api="blas"):
        outside = blas_threads()
        with one_thread():
            assert blas_threads() == {1}
        assert blas_threads() == outside
