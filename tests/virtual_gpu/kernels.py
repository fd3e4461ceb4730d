"""PTX kernels with known faults, to show that the virtual GPU finds them."""

from __future__ import annotations

import numpy as np

_HEAD = ".version 8.0\n.target sm_80\n.address_size 64\n"

#: A block of 64 threads: each writes its index to shared memory and reads its partner's.
_EXCHANGE = """
.visible .entry {name}(.param .u64 to)
{{
  .reg .b32 %r<8>;
  .reg .b64 %rd<4>;
  .shared .align 4 .b8 held[256];
  ld.param.u64 %rd1, [to];
  cvta.to.global.u64 %rd1, %rd1;
  mov.u32 %r1, %tid.x;
  shl.b32 %r2, %r1, 2;
  mov.u32 %r3, held;
  add.s32 %r3, %r3, %r2;
  st.shared.u32 [%r3], %r1;
  {barrier}
  xor.b32 %r4, %r2, 252;
  mov.u32 %r5, held;
  add.s32 %r5, %r5, %r4;
  ld.shared.u32 %r6, [%r5];
  mul.wide.u32 %rd2, %r1, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r6;
  ret;
}}
"""

#: Four blocks of one thread: each stores its number; the last to arrive sums them.
_TOTAL = """
.visible .entry {name}(.param .u64 to, .param .u64 parts, .param .u64 ticket)
{{
  .reg .pred %p<4>;
  .reg .b32 %r<10>;
  .reg .b64 %rd<8>;
  ld.param.u64 %rd1, [to];
  ld.param.u64 %rd2, [parts];
  ld.param.u64 %rd3, [ticket];
  mov.u32 %r1, %ctaid.x;
  add.s32 %r2, %r1, 1;
  mul.wide.u32 %rd4, %r1, 4;
  add.s64 %rd5, %rd2, %rd4;
  st.global.u32 [%rd5], %r2;
  {before}
  atom.global.inc.u32 %r3, [%rd3], 3;
  {after}
  setp.ne.u32 %p1, %r3, 3;
  @%p1 bra $done;
  ld.global.v4.u32 {{%r4, %r5, %r6, %r7}}, [%rd2];
  add.s32 %r4, %r4, %r5;
  add.s32 %r6, %r6, %r7;
  add.s32 %r4, %r4, %r6;
  st.global.u32 [%rd1], %r4;
$done:
  ret;
}}
"""

#: One thread.
_ONE = """
.visible .entry {name}(.param .u64 to)
{{
  .reg .pred %p<2>;
  .reg .b32 %r<4>;
  .reg .b64 %rd<2>;
  .shared .align 4 .b8 held[64];
  ld.param.u64 %rd1, [to];
  mov.u32 %r1, %tid.x;
  {body}
  ret;
}}
"""

_FENCE = "fence.acq_rel.gpu;"

#: All kernels; the body of each `_ONE` kernel accesses `to`, memory of 64 numbers.
PTX = _HEAD + "".join(
    [
        _EXCHANGE.format(name="exchange", barrier="bar.sync 0;"),
        _EXCHANGE.format(name="exchange_without_barrier", barrier=""),
        _TOTAL.format(name="total", before=_FENCE, after=_FENCE),
        _TOTAL.format(name="total_without_release", before="", after=_FENCE),
        _TOTAL.format(name="total_without_acquire", before=_FENCE, after=""),
        _ONE.format(name="out_of_bounds", body="ld.global.u32 %r2, [%rd1+256];"),
        _ONE.format(name="not_aligned", body="ld.global.v2.u32 {%r2, %r3}, [%rd1+4];"),
        _ONE.format(name="never_written", body="mov.u32 %r2, held; ld.shared.u32 %r3, [%r2];"),
        _ONE.format(name="past_shared_memory", body="mov.u32 %r2, held; st.shared.u32 [%r2+64], %r1;"),
        _ONE.format(
            name="stale_cache", body="st.global.u32 [%rd1], %r1; ld.global.nc.u32 %r2, [%rd1];"
        ),
        _ONE.format(
            name="divergent_barrier",
            body="setp.eq.u32 %p1, %r1, 0; @%p1 bra $other; bar.sync 0; ret; $other: bar.sync 0;",
        ),
        _ONE.format(name="absent_lane", body="shfl.sync.bfly.b32 %r2, %r1, 1, 31, -1;"),
    ]
)  # fmt: skip


def numbers(count: int) -> np.ndarray:
    """An array of zeros aligned to 64 bytes, as a GPU's memory is."""
    memory = np.zeros(count + 16, dtype=np.uint32)
    first = (-memory.ctypes.data % 64) // 4
    return memory[first : first + count]
