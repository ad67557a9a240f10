// Local response normalisation: which class computes a call, and the threads that share it.
#include "../lrn.h"

#include "../team.h"
#include "planes.h"
#include "rows.h"

namespace engine::ENGINE_ISA {
namespace {

template <typename T, typename Layout>
void run_all(const LrnCall& call, int threads) {
    const Layout layout(call);
    const bool backward = call.gradient != nullptr;
    T* const workspace = static_cast<T*>(call.workspace);
    const int64_t own = lrn_elements_of_thread(call, backward);
    const auto work = [&](int64_t item) {
        T* const mine = workspace + Team::this_thread() * own;
        backward ? layout.backward(item, mine) : layout.forward(item, mine);
    };
    const int64_t most = smaller(smaller(threads, kLrnThreads), layout.items());
    if (most > 1) return share(static_cast<int>(most), layout.items(), work);
    for (int64_t item = 0; item < layout.items(); ++item) work(item);
}

template <typename T, typename Power>
void run_power(const LrnCall& call, int threads) {
    call.innermost ? run_all<T, Rows<T, Power>>(call, threads) : run_all<T, Planes<T, Power>>(call, threads);
}

template <typename T>
void run(const LrnCall& call, int threads) {
    if (call.images == 0 || call.channels == 0 || call.places == 0) return;
    call.beta == 0.75 ? run_power<T, ThreeQuarters<T>>(call, threads) : run_power<T, AnyPower<T>>(call, threads);
}

}  // namespace

extern const LrnKernels lrn;
const LrnKernels lrn{run<float>, run<double>};

}  // namespace engine::ENGINE_ISA
