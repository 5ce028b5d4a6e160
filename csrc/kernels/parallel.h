// How kernels use threads without knowing whose they are: the caller hands in its pool.
//
// A pool runs body(context, worker) once for each worker, at once or one after the other. Whoever is free takes a task,
// and sums are cut by problem size alone, so results do not depend on the number of workers.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

namespace msg3d {

struct Pool {
  int workers;
  void (*run)(int workers, void (*body)(void* context, int worker), void* context);
};

// Calls task_body(worker, task) for every task in [0, tasks). A worker begins with its own run of tasks, so that
// neighbouring calls find in its cache what it wrote, and then helps the others.
template <typename TaskBody>
void for_each_task(const Pool& pool, int64_t tasks, const TaskBody& task_body) {
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  const int workers = static_cast<int>(tasks < pool.workers ? tasks : pool.workers);
  if (workers == 0) return;
  struct Context {
    const TaskBody& body;
    int workers;
    std::unique_ptr<Share[]> shares;
  } context{task_body, workers, std::make_unique<Share[]>(workers)};
  for (int w = 0; w < workers; ++w) {
    context.shares[w].next = tasks * w / workers;
    context.shares[w].end = tasks * (w + 1) / workers;
  }
  pool.run(
      workers,
      [](void* opaque, int worker) {
        auto& context = *static_cast<Context*>(opaque);
        for (int i = 0; i < context.workers; ++i) {
          Share& share = context.shares[(worker + i) % context.workers];
          for (int64_t task; (task = share.next.fetch_add(1)) < share.end;) context.body(worker, task);
        }
      },
      &context);
}

}  // namespace msg3d
