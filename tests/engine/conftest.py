"""Triton's kernels, in its interpreter, may read and write nothing but the tensors that they were called with."""

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _within_bounds(monkeypatch):
    try:
        import triton
        from triton.runtime import interpreter
    except ImportError:
        return
    if not triton.knobs.runtime.interpret:
        return
    extents = np.empty((0, 2), np.uint64)
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    read, write, begin = builder.create_masked_load, builder.create_masked_store, executor._init_args_hst

    def called(self, arguments, named):
        nonlocal extents
        tensors = [value for value in (*arguments, *named.values()) if hasattr(value, "data_ptr") and value.numel()]
        assert all(tensor.is_contiguous() for tensor in tensors)
        ends = {(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors}
        extents = np.array(sorted(ends), np.uint64).reshape(-1, 2)
        return begin(self, arguments, named)

    def check(what, pointers, mask):
        starts = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)]
        if not starts.size:
            return
        ends = starts + np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        tensor = np.searchsorted(extents[:, 0], starts, side="right") - 1
        outside = (tensor < 0) | (ends > extents[tensor, 1])
        if outside.any():
            raise IndexError(f"a kernel {what} {outside.sum()} of {outside.size} numbers outside its tensors")

    def checked_read(self, pointers, mask, *others):
        check("reads", pointers, mask)
        return read(self, pointers, mask, *others)

    def checked_write(self, pointers, value, mask, *others):
        check("writes", pointers, mask)
        return write(self, pointers, value, mask, *others)

    monkeypatch.setattr(executor, "_init_args_hst", called)
    monkeypatch.setattr(builder, "create_masked_load", checked_read)
    monkeypatch.setattr(builder, "create_masked_store", checked_write)
