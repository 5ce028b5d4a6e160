// How kernels use threads without knowing whose they are: the caller hands in its pool.
//
// A pool runs body(context, worker) once for each worker, at once or one after the other. Tasks are cut by problem size
// alone and taken by whichever worker is free, so results do not depend on the number of workers.
#pragma once

#include <atomic>
#include <cstdint>

namespace msg3d {

struct Pool {
  int workers;
  void (*run)(int workers, void (*body)(void* context, int worker), void* context);
};

// Calls task_body(worker, task) for every task in [0, tasks).
template <typename TaskBody>
void for_each_task(const Pool& pool, int64_t tasks, const TaskBody& task_body) {
  struct Context {
    const TaskBody& body;
    int64_t tasks;
    std::atomic<int64_t> next{0};
  } context{task_body, tasks};
  const int workers = static_cast<int>(tasks < pool.workers ? tasks : pool.workers);
  if (workers == 0) return;
  pool.run(
      workers,
      [](void* opaque, int worker) {
        auto& context = *static_cast<Context*>(opaque);
        for (int64_t task; (task = context.next.fetch_add(1)) < context.tasks;) context.body(worker, task);
      },
      &context);
}

}  // namespace msg3d
