#include "forward.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <numeric>
#include <utility>

#include "graph_convolution.h"
#include "temporal_unit.h"

namespace msg3d::folded {
namespace {

constexpr int64_t kFrames = 8;  // frames of a task, where a task is a run of frames

// Where one person's tensors lie: offsets into that person's part of the arena, reused from stage to stage.
struct Layout {
  int64_t x_frames, before;  // the input with zero frames around it
  int64_t input, current, left, hidden;
  std::vector<int64_t> windows;
  int64_t person;   // values per person
  int64_t scratch;  // values per worker
};

template <typename T>
Layout lay_out(const Network<T>& network, int64_t frames, int64_t panels) {
  Layout layout{};
  const int64_t V = network.joints;
  int64_t activation = 0, hidden = 0;
  std::vector<int64_t> windows;
  const auto grow = [](int64_t& size, int64_t needed) { size = std::max(size, needed); };
  int64_t T_in = frames;
  for (const Stage<T>& stage : network.stages) {
    const bool aggregates = &stage == &network.stages.front();
    const int64_t T_out = stage.first.frames(T_in);
    grow(activation, T_in * V * stage.middle);
    grow(activation, T_out * V * stage.out);
    grow(hidden, (T_in + 2 * stage.first.padding()) * V * stage.first.hidden());
    grow(hidden, (T_out + 2 * std::max(stage.second.padding(), stage.third.padding())) * V * stage.second.hidden());
    int64_t chunk = 0;
    windows.resize(std::max(windows.size(), stage.windows.size()));
    const auto grow_scratch = [&](const GraphConvolution<T>& conv) {
      grow(layout.scratch, aggregates ? aggregate_first_scratch(conv, V) : project_first_scratch(conv, V, panels));
      grow(layout.before, conv.padding());
    };
    grow_scratch(stage.spatial);
    for (std::size_t i = 0; i < stage.windows.size(); ++i) {
      const GraphConvolution<T>& conv = stage.windows[i];
      grow_scratch(conv);
      chunk += kFrames * conv.window * V * conv.out;
      if (!aggregates) grow(windows[i], T_out * conv.window * V * conv.out);
    }
    if (aggregates) layout.scratch += chunk;
    T_in = T_out;
  }
  layout.x_frames = frames + 2 * layout.before + kTogether;
  const auto place = [&](int64_t size) {
    const int64_t offset = layout.person;
    layout.person += (size + kPanel - 1) / kPanel * kPanel;
    return offset;
  };
  layout.input = place(V * layout.x_frames * network.in);
  layout.current = place(activation), layout.left = place(activation);
  layout.hidden = place(hidden);
  for (const int64_t size : windows) layout.windows.push_back(place(size));
  layout.scratch = (layout.scratch + kPanel - 1) / kPanel * kPanel;
  return layout;
}

struct Task {
  int64_t person, begin, end;
  Panels panels{};
  int64_t window = -1;
};

// Cuts [0, count) into even pieces of at most `size`, a multiple of `multiple` where there is enough to cut, and makes
// each a task of `person`.
void cut(std::vector<Task>& tasks, int64_t person, int64_t count, int64_t size, Panels panels, int64_t multiple) {
  int64_t pieces = (count + size - 1) / size;
  if (pieces > 1) pieces = std::min(count, (pieces + multiple - 1) / multiple * multiple);
  for (int64_t i = 0; i < pieces; ++i) tasks.push_back({person, count * i / pieces, count * (i + 1) / pieces, panels});
}

template <typename T>
class Forward {
 public:
  Forward(const Network<T>& network, const Person<T>* persons, int64_t num_persons, int64_t frames, T* arena,
          const Machine<T>& machine)
      : network_(network),
        persons_(persons),
        num_persons_(num_persons),
        frames_(frames),
        arena_(arena),
        machine_(machine),
        layout_(lay_out(network, frames, machine.panels)),
        scratch_(arena + num_persons * layout_.person) {}

  void run() {
    each_person(1, 1, [this](const Task& task, T*) { load(task.person); });
    int64_t T_in = frames_;
    for (const Stage<T>& stage : network_.stages) {
      const bool aggregates = &stage == &network_.stages.front();
      const int64_t T_out = stage.first.frames(T_in);
      aggregates ? spatial_of_input(stage) : graph_convolutions(stage, T_in);
      temporal(stage.first, T_in, layout_.left, layout_.current);
      temporal(stage.second, T_out, layout_.current, layout_.left);
      aggregates ? windows_of_input(stage) : collapse_windows(stage, T_out);
      temporal(stage.third, T_out, layout_.left, layout_.current);
      T_in = T_out;
    }
    each_person(network_.features() / kPanel, 1,
                [this, T_in](const Task& task, T*) { mean(task.person, task.begin, T_in); });
    StepRun::run(machine_.pool, steps_.data(), static_cast<int64_t>(steps_.size()));
  }

 private:
  using Body = std::function<void(int worker, int64_t task)>;

  T* at(int64_t person, int64_t offset) const { return arena_ + person * layout_.person + offset; }

  // One more step: body(task, scratch memory).
  template <typename TaskBody>
  void each(std::vector<Task> tasks, const TaskBody& body) {
    const auto count = static_cast<int64_t>(tasks.size());
    bodies_.push_back([this, tasks = std::move(tasks), body](int worker, int64_t task) {
      body(tasks[task], scratch_ + worker * layout_.scratch);
    });
    steps_.push_back({count, &bodies_.back(),
                      [](void* body, int worker, int64_t task) { (*static_cast<Body*>(body))(worker, task); }});
  }

  // Workers that share a person, if as many work on each of them.
  int64_t share() const { return machine_.pool.workers / std::gcd<int64_t>(machine_.pool.workers, num_persons_); }

  // As many tasks for each worker: there are few, and the next step waits for the last of them.
  template <typename TaskBody>
  void each_person(int64_t count, int64_t size, const TaskBody& body) {
    std::vector<Task> tasks;
    for (int64_t person = 0; person < num_persons_; ++person) cut(tasks, person, count, size, {}, share());
    each(std::move(tasks), body);
  }

  // data_bn, and from (T, V, C) to (V, frames, in) with zero frames around.
  void load(int64_t person) {
    const int64_t V = network_.joints, C = network_.channels, in = network_.in;
    T* x = at(person, layout_.input);
    std::fill(x, x + V * layout_.x_frames * in, T(0));
    for (int64_t v = 0; v < V; ++v) {
      const T* scale = network_.input_scale + (persons_[person].slot * V + v) * in;
      const T* shift = network_.input_shift + (persons_[person].slot * V + v) * in;
      for (int64_t t = 0; t < frames_; ++t) {
        const T* from = persons_[person].clip + (t * V + v) * C;
        T* to = x + (v * layout_.x_frames + layout_.before + t) * in;
        for (int64_t c = 0; c < C; ++c) to[c] = from[c] * scale[c] + shift[c];
      }
    }
  }

  void spatial_of_input(const Stage<T>& stage) {
    each_person(frames_, kFrames, [this, &stage](const Task& task, T* scratch) {
      aggregate_first(stage.spatial, network_.joints, at(task.person, layout_.input), layout_.x_frames, layout_.before,
                      task.begin, task.end, at(task.person, layout_.left) + task.begin * network_.joints * stage.middle,
                      scratch, machine_.product);
    });
  }

  // Windows of a few frames live in scratch only until they are collapsed.
  void windows_of_input(const Stage<T>& stage) {
    each_person(frames_, kFrames, [this, &stage](const Task& task, T* scratch) {
      const int64_t V = network_.joints;
      std::vector<const T*> windows;
      for (const GraphConvolution<T>& conv : stage.windows) {
        T* h = scratch;
        scratch += kFrames * conv.window * V * conv.out;
        windows.push_back(h);
      }
      for (std::size_t i = 0; i < windows.size(); ++i) {
        aggregate_first(stage.windows[i], V, at(task.person, layout_.input), layout_.x_frames, layout_.before,
                        task.begin, task.end, const_cast<T*>(windows[i]), scratch, machine_.product);
      }
      collapse(stage, V, {0, stage.out / kPanel}, windows.data(), task.end - task.begin,
               at(task.person, layout_.left) + task.begin * V * stage.out, machine_.product);
    });
  }

  // The panels of `out` channels in even runs, each as many as the product takes at a time or a multiple.
  std::vector<Panels> panels_of(int64_t out, int64_t runs) const {
    const int64_t end = out / kPanel, tiles = (end + machine_.panels - 1) / machine_.panels;
    std::vector<Panels> all;
    runs = std::min(runs, tiles);
    for (int64_t i = 0; i < runs; ++i) {
      const int64_t first = tiles * i / runs * machine_.panels;
      all.push_back({first, std::min(tiles * (i + 1) / runs * machine_.panels, end) - first});
    }
    return all;
  }
  std::vector<Panels> panels_of(int64_t out) const { return panels_of(out, out); }

  // The convolution per frame and those over windows read the same input: one list of tasks, the large ones first.
  void graph_convolutions(const Stage<T>& stage, int64_t T_in) {
    const int64_t V = network_.joints;
    std::vector<Task> tasks;
    for (int64_t i = static_cast<int64_t>(stage.windows.size()) - 1; i >= 0; --i) {
      const GraphConvolution<T>& conv = stage.windows[i];
      const std::vector<Panels> all_panels = panels_of(conv.out);
      const int64_t count = conv.frames(T_in), parts = static_cast<int64_t>(all_panels.size()) * num_persons_;
      // Pieces are whole blocks of windows. Each projects the frames that it shares with its neighbour once more: only
      // as many pieces as keep the workers busy.
      const int64_t pieces = std::max<int64_t>(1, (2 * machine_.pool.workers) / parts);
      const int64_t blocks = (count + kWindowBlock - 1) / kWindowBlock, size = (blocks + pieces - 1) / pieces;
      for (const Panels& panels : all_panels) {
        for (int64_t begin = 0; begin < blocks; begin += size) {
          for (int64_t person = 0; person < num_persons_; ++person) {
            tasks.push_back({person, begin * kWindowBlock, std::min((begin + size) * kWindowBlock, count), panels, i});
          }
        }
      }
    }
    for (const Panels& panels : panels_of(stage.middle)) {
      std::vector<Task> frames;
      cut(frames, 0, T_in, kFrames, panels, 1);
      for (Task task : frames) {
        for (task.person = 0; task.person < num_persons_; ++task.person) tasks.push_back(task);
      }
    }
    // Workers begin with runs of the list: every run must begin with large tasks, and end with small ones.
    std::vector<Task> dealt;
    for (std::size_t first = 0, workers = machine_.pool.workers; first < workers; ++first) {
      for (std::size_t i = first; i < tasks.size(); i += workers) dealt.push_back(tasks[i]);
    }
    each(std::move(dealt), [this, &stage, V, T_in](const Task& task, T* scratch) {
      const GraphConvolution<T>& conv = task.window < 0 ? stage.spatial : stage.windows[task.window];
      T* y = at(task.person, task.window < 0 ? layout_.left : layout_.windows[task.window]);
      project_first(conv, V, at(task.person, layout_.current), T_in, task.panels, task.begin, task.end, y, scratch,
                    machine_);
    });
  }

  // Workers that share a person take other channels, not other frames: of these there may be too few to be even.
  void collapse_windows(const Stage<T>& stage, int64_t T_out) {
    std::vector<Task> tasks;
    for (int64_t person = 0; person < num_persons_; ++person) {
      for (const Panels& panels : panels_of(stage.out, share())) cut(tasks, person, T_out, kFrames / 2, panels, 1);
    }
    each(std::move(tasks), [this, &stage](const Task& task, T*) {
      const int64_t V = network_.joints;
      std::vector<const T*> windows;
      for (std::size_t i = 0; i < stage.windows.size(); ++i) {
        const GraphConvolution<T>& conv = stage.windows[i];
        windows.push_back(at(task.person, layout_.windows[i]) + task.begin * conv.window * V * conv.out);
      }
      collapse(stage, V, task.panels, windows.data(), task.end - task.begin,
               at(task.person, layout_.left) + task.begin * V * stage.out, machine_.product);
    });
  }

  // Tasks of whole frames, or of any rows (t, v) where frames follow one another in every operand.
  void temporal(const TemporalUnit<T>& unit, int64_t T_in, int64_t from, int64_t to) {
    const int64_t V = network_.joints, step = unit.stride == 1 ? 1 : V;
    each_person(T_in * V / step, kFrames * V / step, [this, &unit, V, T_in, from, to, step](const Task& task, T*) {
      temporal_hidden(unit, V, at(task.person, from), T_in, task.begin * step, task.end * step,
                      at(task.person, layout_.hidden), machine_.product);
    });
    each_person(unit.frames(T_in) * V / step, kFrames * V / step,
                [this, &unit, V, T_in, from, to, step](const Task& task, T*) {
                  temporal_output(unit, V, at(task.person, from), T_in, at(task.person, layout_.hidden),
                                  task.begin * step, task.end * step, at(task.person, to), machine_.product);
                });
  }

  // In double: a sequential mean in float would add three times the error of everything before it.
  void mean(int64_t person, int64_t panel, int64_t T_out) {
    const int64_t rows = T_out * network_.joints, width = network_.features();
    const T* x = at(person, layout_.current) + panel * kPanel;
    double sum[kPanel] = {};
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t c = 0; c < kPanel; ++c) sum[c] += x[row * width + c];
    }
    for (int64_t c = 0; c < kPanel; ++c)
      persons_[person].features[panel * kPanel + c] = sum[c] / static_cast<double>(rows);
  }

  const Network<T>& network_;
  const Person<T>* persons_;
  const int64_t num_persons_, frames_;
  T* const arena_;
  const Machine<T>& machine_;
  const Layout layout_;
  T* const scratch_;
  std::deque<Body> bodies_;  // of the steps
  std::vector<Step> steps_;
};

}  // namespace

int64_t persons_at_once(int64_t persons, int workers) { return std::min<int64_t>(persons, std::max(4, workers / 2)); }

template <typename T>
int64_t arena_size(const Network<T>& network, int64_t persons, int64_t frames, const Machine<T>& machine) {
  const Layout layout = lay_out(network, frames, machine.panels);
  const int workers = machine.pool.workers;
  return persons_at_once(persons, workers) * layout.person + workers * layout.scratch;
}

template <typename T>
void features(const Network<T>& network, const Person<T>* persons, int64_t num_persons, int64_t frames, T* arena,
              const Machine<T>& machine) {
  const int64_t block = persons_at_once(num_persons, machine.pool.workers);
  for (int64_t first = 0; first < num_persons; first += block) {
    Forward<T>(network, persons + first, std::min(block, num_persons - first), frames, arena, machine).run();
  }
}

#define MSG3D_INSTANTIATE(T)                                                              \
  template int64_t arena_size<T>(const Network<T>&, int64_t, int64_t, const Machine<T>&); \
  template void features<T>(const Network<T>&, const Person<T>*, int64_t, int64_t, T*, const Machine<T>&);
MSG3D_INSTANTIATE(float)
MSG3D_INSTANTIATE(double)

}  // namespace msg3d::folded
