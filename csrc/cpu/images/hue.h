// Hue turned in HSV, as torchvision's adjust_hue does it with floats.
#pragma once

#include "lanes.h"

namespace engine::ENGINE_ISA {
namespace {

ENGINE_INLINE Floats least(Floats a, Floats b) { return a < b ? a : b; }
ENGINE_INLINE Floats greatest(Floats a, Floats b) { return a > b ? a : b; }
ENGINE_INLINE Floats clipped(Floats values) { return least(greatest(values, Floats{}), broadcast(1.0f)); }

// Of numbers from 0 on.
ENGINE_INLINE Floats whole_part(Floats values) {
    return __builtin_convertvector(__builtin_convertvector(values, Integers), Floats);
}

// turn: a part of the circle, from -1/2 to 1/2. Gray stays as it is.
ENGINE_INLINE void turn_hue(float turn, Floats& red, Floats& green, Floats& blue) {
    const Floats one = broadcast(1.0f), none{};
    const Floats value = greatest(red, greatest(green, blue));
    const Floats chroma = value - least(red, least(green, blue));
    const Floats saturation = chroma / (value == none ? one : value);
    const Floats divisor = one / (chroma == none ? one : chroma);
    const Floats r = (value - red) * divisor, g = (value - green) * divisor, b = (value - blue) * divisor;
    const Floats sixths = value == red ? b - g : value == green ? r - b + 2.0f : g - r + 4.0f;
    Floats hue = sixths * (1.0f / 6.0f) + (1.0f + turn);
    hue = (hue - whole_part(hue)) * 6.0f;
    const Floats sector = whole_part(hue), rest = hue - sector;
    const Floats low = clipped(value * (one - saturation));
    const Floats falling = clipped(value * (one - saturation * rest));
    const Floats rising = clipped(value * (one - saturation * (one - rest)));
    // Sectors 0 to 5; where rounding makes it 6, it is 0 again.
    const auto zero = (sector < 1.0f) | (sector > 5.0f), first = sector == 1.0f, second = sector == 2.0f;
    const auto third = sector == 3.0f, fourth = sector == 4.0f;
    red = zero ? value : first ? falling : second | third ? low : fourth ? rising : value;
    green = zero ? rising : first | second ? value : third ? falling : low;
    blue = zero | first ? low : second ? rising : third | fourth ? value : falling;
}

}  // namespace
}  // namespace engine::ENGINE_ISA
