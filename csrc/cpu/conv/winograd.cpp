// Convolution by Winograd's minimal filtering: F(m x m, 3 x 3) computes a tile of m x m outputs from (m + 2)^2 inputs
// with as many multiplications per channel and filter, where the definition takes 9 m^2: 2.25 times fewer for m = 2,
// 4 times for m = 4, 5.06 times for m = 6. Lavin and Gray, "Fast algorithms for convolutional neural networks", CVPR
// 2016; Winograd, "Arithmetic complexity of computations", SIAM 1980.
//
//   inputs[place][tile][channel]    = B^T d B    tiles overlap by two pixels
//   filters[place][channel][filter] = G g G^T
//   sums[place][tile][filter]       = inputs[place] x filters[place], a matrix product for each of (m + 2)^2 places
//   outputs                         = A^T sums A
//
// Filters of 1x3 and 3x1 have tiles of one row or column. The gradient of the images is a convolution like the
// forward one (winograd_plan.h); that of the weight has a file of its own.
#include "../team.h"
#include "winograd_tiles.h"
#include "winograd_weight.h"

namespace engine::ENGINE_ISA {
namespace {

// The arrays of a call, and where its workspace holds what.
template <typename T, typename F>
struct Arrays {
    const T *images, *weight, *bias, *prepared;
    T *output, *inputs, *sums, *filters;

    Arrays(const Plan<T, F>& plan, const ConvCall& call)
        : images(static_cast<const T*>(call.left)),
          weight(static_cast<const T*>(call.right)),
          bias(static_cast<const T*>(call.bias)),
          prepared(static_cast<const T*>(call.prepared)),
          output(static_cast<T*>(call.out)) {
        inputs = static_cast<T*>(call.workspace);
        sums = inputs + (plan.shared ? 1 : call.threads) * plan.input_elements();
        filters = sums + call.threads * plan.sum_elements();
    }
};

// Transforms the filters of all groups: out[group][panel][depth block][place][depth][kPanel].
template <typename T, typename F>
void transform_weight(Team& team, const Plan<T, F>& plan, const T* weight, T* out) {
    team.share(plan.layer.groups * plan.panels * plan.depth_blocks, [&](int64_t part) {
        transform_filters(plan, weight, part, out + part * plan.filter_block_elements());
    });
}

// sums[place][tile][kPanel] (+)= inputs[place][tile][depth] x filters[place][depth][kPanel]
template <typename T, typename F>
void multiply_places(const Plan<T, F>& plan, int64_t tiles, int64_t depth_block, const T* inputs, const T* filters,
                     T* sums) {
    const int64_t depth = plan.depth_of(depth_block), calls = ceil_div(tiles, kRows);
    for (int64_t place = 0; place < F::places; ++place) {
        const T* panel = filters + place * plan.filter_place;
        for (int64_t call = 0, tile = 0; call < calls; ++call) {
            const int64_t rows = ceil_div(tiles - tile, calls - call);  // all calls about equally many
            // The next place's panel follows in memory; each call fetches its share of it, some in every step.
            const int64_t share = kPanel<T> / calls;
            const FetchAhead<T> ahead = {panel, plan.filter_place + call * depth * share, share};
            multiply(rows, inputs + place * plan.input_place + tile * plan.depth, plan.depth, panel, depth,
                     depth_block > 0, sums + place * plan.sum_place + tile * kPanel<T>, kPanel<T>, kPanel<T>, ahead);
            tile += rows;
        }
    }
}

// The outputs of one panel of filters for one block of tiles, whose transformed inputs are given. Filters that are
// not transformed yet (`ready` is null) are transformed into `buffer`, a block of channels at a time.
template <typename T, typename F>
void compute_panel(const Plan<T, F>& plan, const Arrays<T, F>& arrays, int64_t group, int64_t panel,
                   int64_t first_tile, const T* inputs, const T* ready, T* buffer, T* sums) {
    const Layer& layer = plan.layer;
    const int64_t tiles = plan.tiles_of(first_tile);
    for (int64_t block = 0; block < plan.depth_blocks; ++block) {
        const int64_t part = (group * plan.panels + panel) * plan.depth_blocks + block;
        if (!ready) transform_filters(plan, arrays.weight, part, buffer);
        multiply_places(plan, tiles, block, inputs + block * F::places * plan.input_place,
                        ready ? ready + part * plan.filter_block_elements() : buffer, sums);
    }
    const int64_t first_filter = group * layer.filters + panel * kPanel<T>;
    for (int64_t tile = 0; tile < tiles; ++tile)
        transform_output_pixels(plan, sums + tile * kPanel<T>, first_tile + tile, layer.filters - panel * kPanel<T>,
                                arrays.bias ? arrays.bias + first_filter : nullptr, arrays.output + first_filter);
}

// Each thread takes blocks of tiles through all steps by itself.
template <typename T, typename F>
void run_separately(Team& team, const Plan<T, F>& plan, const Arrays<T, F>& arrays, const T* ready) {
    const Layer& layer = plan.layer;
    const int64_t thread = Team::this_thread();
    team.share(layer.groups * plan.blocks, [&](int64_t part) {
        T* inputs = arrays.inputs + thread * plan.input_elements();
        const int64_t group = part % layer.groups, first = part / layer.groups * plan.block;
        for (int64_t tile = 0; tile < plan.tiles_of(first); ++tile)
            transform_input_pixels(plan, arrays.images + group * layer.channels, first + tile,
                                   inputs + tile * plan.depth);
        for (int64_t panel = 0; panel < plan.panels; ++panel)
            compute_panel<T, F>(plan, arrays, group, panel, first, inputs, ready, nullptr,
                                arrays.sums + thread * plan.sum_elements());
    });
}

// All threads transform one block of tiles, and then share out its panels of filters.
template <typename T, typename F>
void run_together(Team& team, const Plan<T, F>& plan, const Arrays<T, F>& arrays, const T* ready) {
    const Layer& layer = plan.layer;
    const int64_t thread = Team::this_thread();
    for (int64_t part = 0; part < layer.groups * plan.blocks; ++part) {
        const int64_t group = part % layer.groups, first = part / layer.groups * plan.block;
        team.share(plan.tiles_of(first), [&](int64_t tile) {
            transform_input_pixels(plan, arrays.images + group * layer.channels, first + tile,
                                   arrays.inputs + tile * plan.depth);
        });
        team.share(plan.panels, [&](int64_t panel) {
            compute_panel(plan, arrays, group, panel, first, arrays.inputs, ready,
                          arrays.filters + thread * plan.filter_block_elements(),
                          arrays.sums + thread * plan.sum_elements());
        });
    }
}

template <typename T, typename F>
void run_form(const Plan<T, F>& plan, const ConvCall& call) {
    const Arrays<T, F> arrays(plan, call);
    with_team(call.threads, [&](Team& team) {
        const T* ready = arrays.prepared;
        if (!ready && !plan.filters_late) {
            transform_weight(team, plan, arrays.weight, arrays.filters);
            ready = arrays.filters;
        }
        plan.shared ? run_together(team, plan, arrays, ready) : run_separately(team, plan, arrays, ready);
    });
}

// Calls use(Form) with the form of the layer's filters.
template <int outputs, typename Use>
ENGINE_INLINE auto with_form(const ConvShape& s, Use use) {
    if (s.kernel_h == 1) return use(Form<1, 1, outputs, 3>{});
    if (s.kernel_w == 1) return use(Form<outputs, 3, 1, 1>{});
    return use(Form<outputs, 3, outputs, 3>{});
}

template <int outputs, typename T>
void run(const ConvCall& call) {
    if (call.direction == Direction::backward_weight) return winograd_weight<T>(call, outputs);
    with_form<outputs>(call.shape, [&](auto form) {
        run_form(Plan<T, decltype(form)>(Layer(call.shape, call.direction), call.threads), call);
    });
}

template <int outputs, typename T>
void prepare(const ConvShape& shape, const void* weight, void* prepared, int threads) {
    with_form<outputs>(shape, [&](auto form) {
        const Plan<T, decltype(form)> plan(Layer(shape, Direction::forward), threads);
        with_team(threads, [&](Team& team) {
            transform_weight(team, plan, static_cast<const T*>(weight), static_cast<T*>(prepared));
        });
    });
}

template <int outputs>
int64_t prepared_bytes(const ConvShape& shape, int size) {
    return with_form<outputs>(shape, [&](auto form) -> int64_t {
        const Layer layer(shape, Direction::forward);
        if (size == 4) return Plan<float, decltype(form)>(layer, 1).filter_elements() * size;
        return Plan<double, decltype(form)>(layer, 1).filter_elements() * size;
    });
}

template <int outputs>
int64_t workspace(const ConvShape& shape, Direction direction, int size, int threads, bool prepared) {
    if (direction == Direction::backward_weight) return winograd_weight_workspace(shape, outputs, size, threads);
    return with_form<outputs>(shape, [&](auto form) -> int64_t {
        const Layer layer(shape, direction);
        if (size == 4) return Plan<float, decltype(form)>(layer, threads).workspace_elements(threads, prepared) * size;
        return Plan<double, decltype(form)>(layer, threads).workspace_elements(threads, prepared) * size;
    });
}

const char* refuses(const ConvShape& s, Direction) {
    const bool square = s.kernel_h == 3 && s.kernel_w == 3;
    const bool line = (s.kernel_h == 3 && s.kernel_w == 1) || (s.kernel_h == 1 && s.kernel_w == 3);
    if (!square && !line) return "the filter is not 3x3, 1x3 or 3x1";
    if (s.stride_h != 1 || s.stride_w != 1) return "the stride is not 1";
    if ((s.kernel_h > 1 && s.dilation_h != 1) || (s.kernel_w > 1 && s.dilation_w != 1)) return "the dilation is not 1";
    return nullptr;
}

}  // namespace

#define ENGINE_WINOGRAD(outputs)                                                                      \
    extern const Algorithm winograd##outputs = {                                                      \
        "winograd" #outputs, refuses, workspace<outputs>, run<outputs, float>, run<outputs, double>,  \
        prepared_bytes<outputs>, prepare<outputs, float>, prepare<outputs, double>, nullptr};
ENGINE_WINOGRAD(2)
ENGINE_WINOGRAD(4)
ENGINE_WINOGRAD(6)

}  // namespace engine::ENGINE_ISA
