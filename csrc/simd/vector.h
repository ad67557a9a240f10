// Vectors of the instruction set that this file is compiled for, in GCC's vector extensions (Clang has them too).
//
// Every source of csrc/cpu/conv and csrc/cpu/images is compiled once per instruction set, with ENGINE_ISA naming it;
// what it defines lies in namespace engine::ENGINE_ISA, and helpers in an anonymous namespace within. So the linker can
// never take a function compiled for AVX-512 for a machine without: for the same reason templates of the standard
// library, which have one name in all of these files, are not used here.
#pragma once

#include <cstdint>
#include <cstring>

#define ENGINE_INLINE __attribute__((always_inline)) inline

namespace engine::ENGINE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32, kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kVectorRegisters = 32;
#else
constexpr int kVectorBytes = 16, kVectorRegisters = 16;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(kVectorBytes)));
    typedef float unaligned __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(kVectorBytes)));
    typedef double unaligned __attribute__((vector_size(kVectorBytes), aligned(8), may_alias));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
ENGINE_INLINE Vector<T> load(const T* from) {
    return *reinterpret_cast<const typename VectorOf<T>::unaligned*>(from);
}

template <typename T>
ENGINE_INLINE void store(T* to, Vector<T> values) {
    *reinterpret_cast<typename VectorOf<T>::unaligned*>(to) = values;
}

template <typename T>
ENGINE_INLINE Vector<T> broadcast(T value) {
    return value - Vector<T>{};
}

// The first `count` lanes, the others zero; nothing beyond them is read. count: 0 to kLanes.
template <typename T>
ENGINE_INLINE Vector<T> load_some(const T* from, int64_t count) {
    if (count >= kLanes<T>) return load(from);
    Vector<T> values{};
    for (int64_t lane = 0; lane < count; ++lane) values[lane] = from[lane];
    return values;
}

// Writes the first `count` lanes and nothing beyond them.
template <typename T>
ENGINE_INLINE void store_some(T* to, Vector<T> values, int64_t count) {
    if (count >= kLanes<T>) return store(to, values);
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = values[lane];
}

// Asks for the cache line `offset` elements from `base`, for reading or for writing. It need not belong to anything: an
// address is all that is formed of it.
template <bool for_writing = false, typename T>
ENGINE_INLINE void prefetch(const T* base, int64_t offset) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(offset) * sizeof(T);
    __builtin_prefetch(reinterpret_cast<const void*>(address), for_writing);
}

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }

}  // namespace
}  // namespace engine::ENGINE_ISA
