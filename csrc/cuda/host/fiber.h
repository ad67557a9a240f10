// Fibers: functions with a stack of their own, of which one runs at a time, until it hands over to another itself.
//
// On x86-64 a switch is fifteen instructions; elsewhere, or with ENGINE_UCONTEXT defined, it is left to the system's
// ucontext, which is correct and many times slower. The address sanitizer and the thread sanitizer are told of every
// switch; for the latter fibers are threads, and accesses that nothing puts in order are races, in whatever order they
// run. It is to watch the kernels, not what runs them: that is ENGINE_UNWATCHED.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#define ENGINE_ADDRESS_SANITIZER 1
#elif defined(__SANITIZE_THREAD__)
#define ENGINE_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ENGINE_ADDRESS_SANITIZER 1
#elif __has_feature(thread_sanitizer)
#define ENGINE_THREAD_SANITIZER 1
#endif
#endif

#if defined(ENGINE_ADDRESS_SANITIZER)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(ENGINE_THREAD_SANITIZER)
#include <sanitizer/tsan_interface.h>
#endif

#if defined(ENGINE_THREAD_SANITIZER) && defined(__clang__)
#define ENGINE_UNWATCHED __attribute__((disable_sanitizer_instrumentation))
#elif defined(ENGINE_THREAD_SANITIZER)
#define ENGINE_UNWATCHED __attribute__((no_sanitize("thread"), noinline))
#else
#define ENGINE_UNWATCHED
#endif

namespace engine {
namespace host {

constexpr size_t kStack = 128 << 10;  // address space: memory is taken for the pages that are touched
constexpr size_t kGuard = 64 << 10;   // below each stack, not to be touched; a multiple of the page's size anywhere

#if defined(__x86_64__) && !defined(ENGINE_UCONTEXT)

using Context = void*;  // a stack pointer: what a call must keep, and where it goes on, lie on that stack

extern "C" __attribute__((visibility("hidden"))) void engine_switch_stack(void** from, void* to);
// It goes on by a jump, not by ret: a processor foretells a ret from the calls it saw, and would be wrong each time.
asm(R"(
.text
.weak engine_switch_stack
.hidden engine_switch_stack
engine_switch_stack:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    pop %rdx
    jmp *%rdx
)");

ENGINE_UNWATCHED inline void swap_contexts(Context& from, Context& to) { engine_switch_stack(&from, to); }

// `top` is a multiple of 16.
ENGINE_UNWATCHED inline void make_context(Context& context, char* /*stack*/, char* top, void (*entry)()) {
    void** at = reinterpret_cast<void**>(top);
    *--at = nullptr;  // where the entry would return to: it never does, and debuggers see the end of the stack
    *--at = reinterpret_cast<void*>(entry);
    for (int saved_registers = 0; saved_registers < 6; ++saved_registers) *--at = nullptr;
    context = at;
}

#else

}  // namespace host
}  // namespace engine
#include <ucontext.h>
namespace engine {
namespace host {

using Context = ucontext_t;

ENGINE_UNWATCHED inline void swap_contexts(Context& from, Context& to) { swapcontext(&from, &to); }

ENGINE_UNWATCHED inline void make_context(Context& context, char* stack, char* top, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = static_cast<size_t>(top - stack);
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}

#endif

// A fiber, or where the thread that runs them goes on. It must stay where it is in memory.
struct Fiber {
    Context context;
    const void* stack = nullptr;  // for the sanitizer, which learns the thread's own from the first fiber
    size_t stack_size = 0;
    void* watched = nullptr;  // what the sanitizer knows it by
};

// Goes on in `to`, and returns when something goes on in `from`; never, if this is its last.
ENGINE_UNWATCHED inline void go_on(Fiber& from, Fiber& to, [[maybe_unused]] bool last = false) {
#if defined(ENGINE_ADDRESS_SANITIZER)
    __sanitizer_start_switch_fiber(last ? nullptr : &from.watched, to.stack, to.stack_size);
#elif defined(ENGINE_THREAD_SANITIZER)
    __tsan_switch_to_fiber(to.watched, __tsan_switch_to_fiber_no_sync);
#endif
    swap_contexts(from.context, to.context);
#if defined(ENGINE_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(from.watched, nullptr, nullptr);
#endif
}

// To be called by a fiber's function first, with who started it.
inline void arrived([[maybe_unused]] Fiber& starter) {
#if defined(ENGINE_ADDRESS_SANITIZER)
    __sanitizer_finish_switch_fiber(nullptr, &starter.stack, &starter.stack_size);
#endif
}

// A fiber for the thread that calls it.
inline Fiber own_fiber() {
    Fiber fiber{};
#if defined(ENGINE_THREAD_SANITIZER)
    fiber.watched = __tsan_get_current_fiber();
#endif
    return fiber;
}

// What any does before a meeting comes before what any does after it. `place` may serve again when all are at another.
ENGINE_UNWATCHED inline void before_meeting([[maybe_unused]] void* place) {
#if defined(ENGINE_THREAD_SANITIZER)
    __tsan_release(place);
#endif
}
ENGINE_UNWATCHED inline void after_meeting([[maybe_unused]] void* place) {
#if defined(ENGINE_THREAD_SANITIZER)
    __tsan_acquire(place);
#endif
}

// Stacks, kept for the next launch: new memory from the system costs more than many a kernel.
class Stacks {
public:
    // Makes `fiber` start with `entry` on the stack of that number.
    ENGINE_UNWATCHED void start(Fiber& fiber, size_t number, void (*entry)()) {
        while (stacks_.size() <= number) stacks_.push_back(allocate());
        char* stack = stacks_[number].memory;
#if defined(ENGINE_ADDRESS_SANITIZER)
        __asan_unpoison_memory_region(stack, kStack);  // frames that a fiber was stopped in
#endif
        // Tops at different places of their pages: else all fibers would share a few lines of the processor's cache.
        make_context(fiber.context, stack, stack + kStack - number % 61 * 64, entry);
        fiber.stack = stack, fiber.stack_size = kStack, fiber.watched = stacks_[number].watched;
    }

private:
    struct Stack {
        char* memory;
        void* watched;
    };

    static Stack allocate() {
        void* memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) std::abort();  // no memory
        void* watched = nullptr;
#if defined(ENGINE_THREAD_SANITIZER)
        watched = __tsan_create_fiber(0);
#endif
        return {static_cast<char*>(memory) + kGuard, watched};
    }

    std::vector<Stack> stacks_;
};

}  // namespace host
}  // namespace engine
