// How kernels use threads without knowing whose they are: the caller hands in its pool.
//
// A pool runs body(context, worker) once for each worker, at once or one after the other. Whoever is free takes a task,
// and sums are cut by problem size alone, so results do not depend on the number of workers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <thread>
#include <vector>

namespace msg3d {

struct Pool {
  int workers;
  void (*run)(int workers, void (*body)(void* context, int worker), void* context);
};

// So many tasks, in any order; all of them end before the next step begins.
struct Step {
  int64_t tasks;
  void* context;
  void (*body)(void* context, int worker, int64_t task);
};

// Steps one after the other in one call of the pool: a worker that finds no task left waits only for those that others
// are at, so that workers may as well run one after the other.
class StepRun {
 public:
  // Throws what the first failing task threw; no task begins after that.
  static void run(const Pool& pool, const Step* steps, int64_t count) {
    int64_t most = 0;
    for (int64_t i = 0; i < count; ++i) most = std::max(most, steps[i].tasks);
    if (most == 0) return;
    StepRun self(steps, count, static_cast<int>(std::min<int64_t>(most, pool.workers)));
    pool.run(self.workers_, [](void* self, int worker) { static_cast<StepRun*>(self)->work(worker); }, &self);
    if (self.failure_) std::rethrow_exception(self.failure_);
  }

 private:
  struct alignas(64) Counter {
    std::atomic<int64_t> value{0};
  };

  StepRun(const Step* steps, int64_t count, int workers)
      : steps_(steps), count_(count), workers_(workers), taken_(count * workers), ended_(count) {}

  __attribute__((noinline)) void work(int worker) {
    for (int64_t s = 0; s < count_; ++s) {
      const Step& step = steps_[s];
      // A worker begins with its own run of tasks, so that neighbouring calls find in its cache what it wrote, and then
      // helps the others.
      for (int i = 0; i < workers_; ++i) {
        const int whose = (worker + i) % workers_;
        const int64_t begin = step.tasks * whose / workers_, end = step.tasks * (whose + 1) / workers_;
        std::atomic<int64_t>& taken = taken_[s * workers_ + whose].value;
        for (int64_t task; (task = begin + taken.fetch_add(1)) < end;) {
          try {
            if (!failed_) step.body(step.context, worker, task);
          } catch (...) {
            if (!failed_.exchange(true)) failure_ = std::current_exception();
          }
          ended_[s].value.fetch_add(1);
        }
      }
      for (int64_t turns = 0; ended_[s].value < step.tasks; ++turns) {
        if (turns > kTurns) std::this_thread::yield();
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    }
  }

  static constexpr int64_t kTurns = 2000;  // some 20 microseconds, then others may have the core
  const Step* const steps_;
  const int64_t count_;
  const int workers_;
  std::vector<Counter> taken_, ended_;  // tasks: of each step and worker's run; of each step
  std::atomic<bool> failed_{false};
  std::exception_ptr failure_;
};

// Calls task_body(worker, task) for every task in [0, tasks).
template <typename TaskBody>
void for_each_task(const Pool& pool, int64_t tasks, const TaskBody& task_body) {
  const Step step{tasks, const_cast<TaskBody*>(&task_body),
                  [](void* body, int worker, int64_t task) { (*static_cast<const TaskBody*>(body))(worker, task); }};
  StepRun::run(pool, &step, 1);
}

}  // namespace msg3d
