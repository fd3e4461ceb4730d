// How the elements of a layer are stored; all are computed in float, double ones in double.
#pragma once

namespace pal_fast::cpu {

enum class Storage { float16, bfloat16, float32, float64 };

}  // namespace pal_fast::cpu
