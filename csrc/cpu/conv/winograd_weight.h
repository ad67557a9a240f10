// Gradient of a weight by Winograd's minimal filtering; winograd.cpp offers it among its directions.
#pragma once

#include "../convolution.h"

namespace engine::ENGINE_ISA {

// Filters 3x3, 1x3 and 3x1 of stride 1; dilation 1 along an axis of 3. Any padding, channels and groups.
// tile: 2, 4 or 6, the height and width of the blocks that the gradient of the output is cut into.
int64_t winograd_weight_workspace(const ConvShape& shape, int tile, int size, int threads);

template <typename T>
void winograd_weight(const ConvCall& call, int tile);

extern template void winograd_weight<float>(const ConvCall&, int);
extern template void winograd_weight<double>(const ConvCall&, int);

}  // namespace engine::ENGINE_ISA
