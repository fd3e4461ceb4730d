"""Matrix products by wgmma in PTX, correct or with one known fault, and their matrices as laid out in shared memory.

A warpgroup copies the layouts of A [64, depth] and B [depth, 64] to shared memory, multiplies, and stores its
accumulators, 32 per thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from virtual_gpu.kernels import numbers

ROWS = COLUMNS = 64
ACCUMULATORS = 32

_KERNEL = """
.version 8.0
.target sm_90a
.address_size 64
.visible .entry product(.param .u64 image, .param .u64 descriptors, .param .u64 to)
{{
  .reg .pred %p<4>;
  .reg .b32 %r<16>;
  .reg .b32 %d<32>;
  .reg .b64 %rd<8>;
  .shared .align 1024 .b8 held[{bytes}];
  ld.param.u64 %rd1, [image];
  ld.param.u64 %rd2, [descriptors];
  ld.param.u64 %rd3, [to];
  mov.u32 %r1, %tid.x;
  mov.u32 %r3, held;
  shl.b32 %r2, %r1, 4;
$copy:
  cvt.u64.u32 %rd4, %r2;
  add.s64 %rd5, %rd1, %rd4;
  ld.global.v4.b32 {{%r4, %r5, %r6, %r7}}, [%rd5];
  add.s32 %r8, %r3, %r2;
  st.shared.v4.b32 [%r8], {{%r4, %r5, %r6, %r7}};
  add.s32 %r2, %r2, 2048;
  setp.lt.u32 %p1, %r2, {bytes};
  @%p1 bra $copy;
  setp.eq.u32 %p2, %r1, 0;
  {before_barrier}
  {barrier}
  {after_barrier}
  {fence}
  {products}
  {commit}
  {wait}
  mul.wide.u32 %rd4, %r1, 128;
  add.s64 %rd3, %rd3, %rd4;
  {stores}
  ret;
}}
"""

_PROXY_FENCE = "fence.proxy.async.shared::cta;"


def product(
    kind: str,
    steps: int,
    image_bytes: int,
    *,
    transposed: str = "",
    before_barrier: str = _PROXY_FENCE,
    barrier: str = "bar.sync 0;",
    after_barrier: str = "",
    fence: str = "wgmma.fence.sync.aligned;",
    commit: str = "wgmma.commit_group.sync.aligned;",
    wait: str = "wgmma.wait_group.sync.aligned 0;",
) -> str:
    """PTX of the kernel "product": `kind` is the factors' type; each keyword replaces a part, to inject a fault."""
    depth = 8 if kind == "tf32" else 16
    accumulators = ", ".join(f"%d{r}" for r in range(ACCUMULATORS))
    products = "\n".join(
        f"ld.global.v2.u64 {{%rd6, %rd7}}, [%rd2+{16 * step}];\n"
        f"wgmma.mma_async.sync.aligned.m64n64k{depth}.f32.{kind}.{kind} "
        f"{{{accumulators}}}, %rd6, %rd7, {int(step > 0)}, 1, 1{transposed};"
        for step in range(steps)
    )
    stores = "\n".join(f"st.global.b32 [%rd3+{4 * r}], %d{r};" for r in range(ACCUMULATORS))
    return _KERNEL.format(
        bytes=image_bytes, before_barrier=before_barrier, barrier=barrier, after_barrier=after_barrier, fence=fence,
        products=products, commit=commit, wait=wait, stores=stores,
    )  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """A matrix's layout in shared memory: bytes of the swizzle, 16 for none, and whether k is the inner dimension."""

    swizzle: int
    along_k: bool = True

    def place(self, line: int, k: int, lines: int, depth: int, size: int) -> int:
        """The byte offset of an element of `size` bytes; the matrix starts where the swizzle's pattern does."""
        outer, inner = (line, k * size) if self.along_k else (k, line * size)
        outers = lines if self.along_k else depth
        # Atoms of 8 outer lines; those along the outer dimension follow one another.
        atom = inner // self.swizzle * (outers // 8) + outer // 8
        address = atom * 8 * self.swizzle + outer % 8 * self.swizzle + inner % self.swizzle
        return address ^ address // 128 % (self.swizzle // 16) * 16

    def image(self, matrix: np.ndarray) -> np.ndarray:
        """The bytes of a matrix [lines, depth]."""
        lines, depth = matrix.shape
        image = np.zeros(matrix.nbytes, np.uint8)
        for line in range(lines):
            for k in range(depth):
                at = self.place(line, k, lines, depth, matrix.itemsize)
                image[at : at + matrix.itemsize] = matrix[line : line + 1, k : k + 1].view(np.uint8)
        return image

    def descriptor(self, begin: int, lines: int, depth: int, size: int, step: int) -> int:
        """The descriptor of one instruction's operand: 32 bytes along k, the `step`-th of them."""
        next_lines, next_atom = 8 * self.swizzle, (lines if self.along_k else depth) * self.swizzle
        k = step * 32 // size
        # The start of a step is where its first element would be without the swizzle, whose lines it does not change.
        begin += self.place(0, k, lines, depth, size)
        leading, stride = next_atom, next_lines
        if self.swizzle == 16 and not self.along_k:
            leading, stride = stride, leading
        mode = {16: 0, 128: 1, 64: 2, 32: 3}[self.swizzle]
        return begin >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def operands(layout: Layout, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The image of A [64, depth] and B [64, depth], by columns, and the descriptors of the steps along k."""
    depth, size = a.shape[1], a.itemsize
    image = numbers(2 * a.nbytes // 4)
    image.view(np.uint8)[:] = np.concatenate([layout.image(a), layout.image(b)])
    steps = range(depth * size // 32)
    descriptors = numbers(4 * len(steps)).view(np.uint64)
    descriptors[:] = [
        layout.descriptor(begin, ROWS, depth, size, step) for step in steps for begin in (0, a.nbytes)
    ]  # fmt: skip
    return image, descriptors


def matrix_of(accumulators: np.ndarray) -> np.ndarray:
    """The accumulators of 128 threads as D [64, 64]."""
    thread, register = np.indices((128, ACCUMULATORS))
    rows = thread // 32 * 16 + register // 2 % 2 * 8 + thread % 32 // 4
    columns = register // 4 * 8 + thread % 4 * 2 + register % 2
    matrix = np.zeros((ROWS, COLUMNS), np.float32)
    matrix[rows, columns] = accumulators.view(np.float32).reshape(128, ACCUMULATORS)
    return matrix
