// Gradient of a weight by Winograd's minimal filtering, F(3x3, tile x tile).
//
// The gradient of a 3x3 weight is a correlation of the images with the gradient of the output: few outputs, 3x3, and
// filters as large as the output. The filters are cut into blocks of tile x tile, each of which meets a patch of the
// images of tile + 2 pixels each way, and the results of all blocks add up. Both sides are transformed, and since the
// last transform is linear it waits for the sum: for each of the (tile + 2)^2 elements e
//   sums[e] (filters x channels) = gradients[e]^T (filters x blocks) times images[e] (blocks x channels),
// and then 3x3 weights come from (tile + 2)^2 sums. Per 9 * tile^2 products of the definition that is (tile + 2)^2.
// Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR 2016, section 4; Winograd 1980.
//
// Blocks are taken some hundreds at a time: what is transformed stays in the caches, and a long sum is made of short
// ones, which keeps rounding errors small. Threads share elements, filters and channels, never the sum.
#include "winograd_weight.h"

#include "../team.h"
#include "winograd_patch.h"

namespace engine::ENGINE_ISA {
namespace {

// Rows of sums held in registers, two vectors each.
constexpr int kSumRows = kVectorRegisters == 32 ? 8 : 4;
// Elements are this many bytes further apart than they need be: powers of two would share few sets of the caches.
constexpr int64_t kApart = 64;
// Bounds of how many blocks are taken at a time.
constexpr int64_t kLeast = 64, kMost = 512;
// Filters times channels whose sums exceed the caches, so that it matters how often they are touched.
constexpr int64_t kLargeWeight = 256 * 256;
// How many blocks are few, and the filters and channels of a square; see Plan.
constexpr int64_t kFewBlocks = 64, kSquareFilters = 64, kSquareChannels = 128;

// What is where. All lengths and distances are in elements of type T.
struct Plan {
    int64_t group_channels, group_filters;
    int64_t channel_panels, filter_panels;  // of one group
    int64_t across, down, blocks;           // blocks of one image per row and per column; of the whole batch
    int64_t portion;                        // blocks taken at a time
    int64_t elements;
    // Where there are few blocks, reading and writing the sums would take longer than the products. So they are made
    // for some filters and channels at a time, a square, for all elements, and become weights while still in the
    // cache. Otherwise one square is a whole group.
    bool few_blocks;
    int64_t square_filters, square_channels;            // panels of one square
    int64_t squares_down, squares_across;               // squares of one group
    int64_t image_stride, gradient_stride, sum_stride;  // from one element to the next
};

template <typename T>
Plan make_plan(const ConvShape& s, int tile) {
    constexpr int64_t width = kPanelWidth<T>, apart = kApart / static_cast<int64_t>(sizeof(T));
    const int tile_h = s.kernel_h == 1 ? 1 : tile, tile_w = s.kernel_w == 1 ? 1 : tile;
    Plan plan;
    plan.group_channels = s.channels / s.groups;
    plan.group_filters = s.filters / s.groups;
    plan.channel_panels = ceil_div(plan.group_channels, width);
    plan.filter_panels = ceil_div(plan.group_filters, width);
    plan.down = ceil_div(s.out_h, tile_h);
    plan.across = ceil_div(s.out_w, tile_w);
    plan.blocks = s.batch * plan.down * plan.across;
    plan.elements = (tile_h + s.kernel_h - 1) * (tile_w + s.kernel_w - 1);

    plan.few_blocks = plan.blocks <= kFewBlocks && plan.group_channels * plan.group_filters >= kLargeWeight;
    plan.square_filters = plan.few_blocks ? kSquareFilters / width : plan.filter_panels;
    plan.square_channels = plan.few_blocks ? kSquareChannels / width : plan.channel_panels;
    plan.squares_down = ceil_div(plan.filter_panels, plan.square_filters);
    plan.squares_across = ceil_div(plan.channel_panels, plan.square_channels);
    // The more sums there are, the more seldom they should be read and written. And a sum of hundreds of thousands is
    // most exact if it is made of as many short ones as each of those is long.
    const int64_t wanted = larger(plan.group_channels * plan.group_filters / 512, plan.blocks / 256);
    const int64_t most = larger(kLeast, smaller(kMost, wanted));
    plan.portion = plan.few_blocks ? plan.blocks : ceil_div(plan.blocks, ceil_div(plan.blocks, most));

    plan.image_stride = s.groups * plan.channel_panels * plan.portion * width + apart;
    plan.gradient_stride = s.groups * plan.filter_panels * plan.portion * width + apart;
    plan.sum_stride = plan.square_filters * plan.square_channels * width * width + apart;
    return plan;
}

// Adds a^T (kSumRows x depth) times b (depth x vectors) to the sums at `to`, or writes it there; a and b are panels,
// whose width is also the distance of the sums' rows. Sums are fetched while there is something to multiply.
template <typename T, int vectors>
inline void multiply_panels(const T* a, const T* b, int64_t depth, bool accumulate, T* to) {
    constexpr int lanes = kLanes<T>;
    Vector<T> sums[kSumRows][vectors];
#pragma GCC unroll 8
    for (int row = 0; row < kSumRows; ++row)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            sums[row][v] = Vector<T>{};
            __builtin_prefetch(to + row * kPanelWidth<T> + v * lanes, 1);
        }
    for (int64_t k = 0; k < depth; ++k, a += kPanelWidth<T>, b += kPanelWidth<T>) {
        Vector<T> right[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) right[v] = load(b + v * lanes);
#pragma GCC unroll 8
        for (int row = 0; row < kSumRows; ++row) {
            const Vector<T> left = broadcast(a[row]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) sums[row][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < kSumRows; ++row, to += kPanelWidth<T>)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v)
            store(to + v * lanes, accumulate ? load(to + v * lanes) + sums[row][v] : sums[row][v]);
}

// Some filters and channels of one group, counted in panels, and where their sums are kept.
template <typename T>
struct Square {
    int64_t group, first_filter, filters, first_channel, channels;
    T* sums;
};

template <typename T, int tile_h, int tile_w>
struct WeightGradient {
    using ImagePatch = Patch<T, tile_h, tile_w, false>;
    using GradientPatch = Patch<T, tile_h, tile_w, true>;
    static constexpr int weight_h = ImagePatch::weight_h, weight_w = ImagePatch::weight_w;
    static constexpr int size_h = ImagePatch::size_h, size_w = ImagePatch::size_w;
    static constexpr int width = kPanelWidth<T>;

    const ConvShape& s;
    const Plan plan;
    const T* gradients;
    const T* images;
    T* out;
    T* transformed_images;
    T* transformed_gradients;
    T* sums;

    void transform_block(int64_t block, int64_t place) const {
        const int64_t column = block % plan.across, row = block / plan.across % plan.down;
        const int64_t n = block / plan.across / plan.down;
        const int64_t top = row * tile_h, left = column * tile_w;
        const ImagePatch image{images + n * s.height * s.width * s.channels, s.height, s.width, s.channels};
        image.all_channels(top - s.padding_h, left - s.padding_w, s.groups, plan.portion, place, transformed_images,
                           plan.image_stride);
        const GradientPatch gradient{gradients + n * s.out_h * s.out_w * s.filters, s.out_h, s.out_w, s.filters};
        gradient.all_channels(top, left, s.groups, plan.portion, place, transformed_gradients, plan.gradient_stride);
    }

    // Square number `index` of all groups; its sums are in the place `slot`.
    Square<T> square(int64_t index, int64_t slot) const {
        const int64_t across = index % plan.squares_across, down = index / plan.squares_across % plan.squares_down;
        const int64_t filter = down * plan.square_filters, channel = across * plan.square_channels;
        return {index / plan.squares_across / plan.squares_down,
                filter,
                smaller(plan.square_filters, plan.filter_panels - filter),
                channel,
                smaller(plan.square_channels, plan.channel_panels - channel),
                sums + slot * plan.elements * plan.sum_stride};
    }

    // The sums of one element, for one panel of channels and all filters of a square.
    void multiply(const Square<T>& here, int64_t e, int64_t panel, int64_t depth, bool accumulate) const {
        const int64_t c = here.first_channel + panel, panel_size = plan.portion * width;
        const T* right = transformed_images + e * plan.image_stride +
                         (here.group * plan.channel_panels + c) * panel_size;
        const bool narrow = plan.group_channels - c * width <= kLanes<T>;
        for (int64_t f = 0; f < here.filters; ++f) {
            const int64_t k = here.first_filter + f, rows = smaller(width, plan.group_filters - k * width);
            const T* left = transformed_gradients + e * plan.gradient_stride +
                            (here.group * plan.filter_panels + k) * panel_size;
            T* to = here.sums + e * plan.sum_stride + (f * plan.square_channels + panel) * width * width;
            for (int64_t row = 0; row < rows; row += kSumRows)
                if (narrow)
                    multiply_panels<T, 1>(left + row, right, depth, accumulate, to + row * width);
                else
                    multiply_panels<T, 2>(left + row, right, depth, accumulate, to + row * width);
        }
    }

    // The weights of one panel of filters and one of channels, counted within the square, from the sums.
    void weights_of_panels(const Square<T>& here, int64_t filter_panel, int64_t channel_panel) const {
        const int64_t k = (here.first_filter + filter_panel) * width, filters = smaller(width, plan.group_filters - k);
        const int64_t c = (here.first_channel + channel_panel) * width;
        const int64_t channels = smaller(width, plan.group_channels - c);
        const T* from = here.sums + (filter_panel * plan.square_channels + channel_panel) * width * width;
        T* to = out + (here.group * plan.group_filters + k) * weight_h * weight_w * plan.group_channels + c;
        for (int64_t row = 0; row < filters; ++row, from += width, to += weight_h * weight_w * plan.group_channels)
            for (int64_t lane = 0; lane < channels; lane += kLanes<T>)
                transform_weights(from + lane, to + lane, channels - lane);
    }

    void transform_weights(const T* from, T* to, int64_t channels) const {
        Vector<T> half_done[weight_h * size_w];
#pragma GCC unroll 8
        for (int column = 0; column < size_w; ++column) {
            Vector<T> in[size_h];
#pragma GCC unroll 8
            for (int row = 0; row < size_h; ++row) in[row] = load(from + (row * size_w + column) * plan.sum_stride);
            transform_output<weight_h, tile_h, T>(in, 1, half_done + column, size_w);
        }
        for (int row = 0; row < weight_h; ++row) {
            Vector<T> weights[weight_w];
            transform_output<weight_w, tile_w, T>(half_done + row * size_w, 1, weights, 1);
            for (int column = 0; column < weight_w; ++column, to += plan.group_channels)
                store_some(to, weights[column], channels);
        }
    }

    void run(int threads) const {
        with_team(threads, [&](Team& team) {
            for (int64_t first = 0; first < plan.blocks; first += plan.portion) {
                const int64_t count = smaller(plan.portion, plan.blocks - first);
                team.share(count, [&](int64_t place) { transform_block(first + place, place); });
                if (!plan.few_blocks) multiply_all(team, count, first > 0);
            }
            plan.few_blocks ? square_by_square(team) : transform_all_weights(team);
        });
    }

    // The products of some blocks, added to the sums.
    void multiply_all(Team& team, int64_t count, bool accumulate) const {
        const int64_t items = plan.elements * plan.channel_panels;
        team.share(s.groups * items, [&](int64_t item) {
            const int64_t group = item / items, e = item % items / plan.channel_panels;
            multiply(square(group, group), e, item % plan.channel_panels, count, accumulate);
        });
    }

    void transform_all_weights(Team& team) const {
        const int64_t items = plan.filter_panels * plan.channel_panels;
        team.share(s.groups * items, [&](int64_t item) {
            const int64_t group = item / items, panels = item % items;
            weights_of_panels(square(group, group), panels / plan.channel_panels, panels % plan.channel_panels);
        });
    }

    void square_by_square(Team& team) const {
        team.share(s.groups * plan.squares_down * plan.squares_across, [&](int64_t index) {
            const Square<T> here = square(index, Team::this_thread());
            for (int64_t e = 0; e < plan.elements; ++e)
                for (int64_t panel = 0; panel < here.channels; ++panel) multiply(here, e, panel, plan.blocks, false);
            for (int64_t filter = 0; filter < here.filters; ++filter)
                for (int64_t panel = 0; panel < here.channels; ++panel) weights_of_panels(here, filter, panel);
        });
    }
};

template <typename T, int tile_h, int tile_w>
void run(const ConvCall& call, int tile) {
    const Plan plan = make_plan<T>(call.shape, tile);
    T* const images = static_cast<T*>(call.workspace);
    T* const gradients = images + plan.elements * plan.image_stride;
    T* const sums = gradients + plan.elements * plan.gradient_stride;
    const T* left = static_cast<const T*>(call.left);
    const T* right = static_cast<const T*>(call.right);
    T* out = static_cast<T*>(call.out);
    WeightGradient<T, tile_h, tile_w>{call.shape, plan, left, right, out, images, gradients, sums}.run(call.threads);
}

template <typename T, int tile>
void run_tile(const ConvCall& call) {
    if (call.shape.kernel_h == 1) return run<T, 1, tile>(call, tile);
    if (call.shape.kernel_w == 1) return run<T, tile, 1>(call, tile);
    run<T, tile, tile>(call, tile);
}

}  // namespace

int64_t winograd_weight_workspace(const ConvShape& shape, int tile, int size, int threads) {
    const Plan plan = size == 4 ? make_plan<float>(shape, tile) : make_plan<double>(shape, tile);
    const int64_t squares = plan.few_blocks ? threads : shape.groups;
    return plan.elements * (plan.image_stride + plan.gradient_stride + squares * plan.sum_stride) * size;
}

template <typename T>
void winograd_weight(const ConvCall& call, int tile) {
    if (tile == 2) return run_tile<T, 2>(call);
    if (tile == 4) return run_tile<T, 4>(call);
    run_tile<T, 6>(call);
}

template void winograd_weight<float>(const ConvCall&, int);
template void winograd_weight<double>(const ConvCall&, int);

}  // namespace engine::ENGINE_ISA
