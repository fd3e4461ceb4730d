// The storage types of a layer's elements. The compute type is double for float64 and float for all others.
#pragma once

namespace pal_fast::cpu {

enum class Storage { float16, bfloat16, float32, float64 };

}  // namespace pal_fast::cpu
