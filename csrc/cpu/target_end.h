// Ends what target_avx2.h or target_avx512.h began, which is the last thing in a file: g++ instantiates templates at
// the file's end, for the instruction set that is in force there.
#ifdef __clang__
#pragma clang attribute pop
#endif
