// A workspace cut into arrays.
#pragma once

#include "../../simd/vector.h"

namespace engine::ENGINE_ISA {
namespace {

// Gives out arrays one after the other, aligned to cache lines. Begun at null it only counts.
class Memory {
public:
    explicit Memory(void* begin) : begin_(static_cast<char*>(begin)) {}

    template <typename T>
    T* array(int64_t count) {
        const int64_t at = bytes_;
        bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return begin_ ? reinterpret_cast<T*>(begin_ + at) : nullptr;
    }
    int64_t bytes() const { return bytes_; }

private:
    char* begin_;
    int64_t bytes_ = 0;
};

}  // namespace
}  // namespace engine::ENGINE_ISA
