// Recordings on the CPU: the calls of a step's host kernels, made one after the other by one task.
//
// What calls write for later calls of the same step has its place in an arena. Places are shared by
// what is never needed at the same time, and the arena by all recordings of a thread, because their
// runs follow each other. All else (weights, caches, tables) stays where it is, and is kept.
//
// A step can be recorded if all its nodes are host kernels that can be repeated, or show memory of
// others in new shapes.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include "evaluation.h"
#include "host_kernel.h"
#include "mlx/backend/cpu/encoder.h"
#include "replay.h"

namespace mx = mlx::core;

namespace metal_rpc {
namespace {

using Arrays = std::vector<mx::array>;
using Data = std::shared_ptr<mx::array::Data>;

constexpr size_t kLine = 64;

// Where a call finds an array: at an address, or without one at an offset of the arena.
struct Place {
  char* address;
  size_t offset;
  size_t size_bytes;

  metal_rpc_view in(char* arena) const {
    return {address != nullptr ? address : arena + offset, size_bytes};
  }
};

struct Call {
  std::shared_ptr<const HostCall> run;
  std::vector<Place> inputs, outputs;
};

// What all runs of a recording share and only read.
struct Program {
  std::vector<Call> calls;
  std::vector<Place> results;
  // Memory with an address.
  std::unordered_set<Data> kept;
  size_t num_lines = 0;

  void run(char* arena, const std::vector<metal_rpc_view>& results_of_run) const {
    std::vector<metal_rpc_view> in, out;
    for (auto& call : calls) {
      in.clear();
      out.clear();
      for (auto& place : call.inputs) {
        in.push_back(place.in(arena));
      }
      for (auto& place : call.outputs) {
        out.push_back(place.in(arena));
      }
      (*call.run)(in, out);
    }
    for (size_t i = 0; i < results.size(); i++) {
      std::memcpy(results_of_run[i].data, results[i].in(arena).data, results[i].size_bytes);
    }
  }
};

// Memory of the arena, in use from the call `first` to the call `last`.
struct Temporary {
  size_t first;
  size_t last;
  size_t num_lines;
  size_t line = 0;
};

// Gives each the first place that nobody else uses meanwhile; they are in order of their first calls.
// Returns the size of it all.
size_t place(std::vector<Temporary>& temporaries) {
  size_t end = 0;
  std::vector<const Temporary*> others; // By their lines.
  for (auto& next : temporaries) {
    std::erase_if(others, [&](auto other) { return other->last < next.first; });
    auto other = others.begin();
    while (other != others.end() && (*other)->line < next.line + next.num_lines) {
      next.line = (*other)->line + (*other)->num_lines;
      ++other;
    }
    others.insert(other, &next);
    end = std::max(end, next.line + next.num_lines);
  }
  return end;
}

// The host kernels of an evaluation, with their arrays: so no memory is used twice meanwhile.
class Recorder : public HostListener {
 public:
  void scheduled(
      const std::shared_ptr<const HostCall>& call,
      const Arrays& inputs,
      const Arrays& outputs) override {
    for (auto& output : outputs) {
      const auto& data = output.data_shared_ptr();
      const bool is_in_place = std::any_of(inputs.begin(), inputs.end(), [&](auto& input) {
        return input.data_shared_ptr() == data;
      });
      if (!is_in_place) {
        temporary_of_.emplace(data, temporaries_.size());
        temporaries_.push_back({calls_.size(), calls_.size(), num_lines(output)});
      }
    }
    use(inputs);
    use(outputs);
    calls_.push_back({call, inputs, outputs});
    is_repeatable_ &= call->is_repeatable;
  }

  bool is_repeatable() const {
    return is_repeatable_;
  }

  // The recorded calls, after which `results` are copied away.
  std::shared_ptr<const Program> program(const Arrays& results) {
    use(results);
    Program program;
    program.num_lines = place(temporaries_);
    for (auto& call : calls_) {
      program.calls.push_back(
          {call.run, places(call.inputs, program), places(call.outputs, program)});
    }
    program.results = places(results, program);
    return std::make_shared<const Program>(std::move(program));
  }

 private:
  struct Scheduled {
    std::shared_ptr<const HostCall> run;
    Arrays inputs, outputs;
  };

  static size_t num_lines(const mx::array& array) {
    return (array.nbytes() + kLine - 1) / kLine;
  }

  // The next call, or the end, needs these.
  void use(const Arrays& arrays) {
    for (auto& array : arrays) {
      auto found = temporary_of_.find(array.data_shared_ptr());
      if (found != temporary_of_.end()) {
        temporaries_[found->second].last = calls_.size();
      }
    }
  }

  std::vector<Place> places(const Arrays& arrays, Program& program) const {
    std::vector<Place> places;
    for (auto& array : arrays) {
      auto address = const_cast<char*>(array.data<char>());
      auto found = temporary_of_.find(array.data_shared_ptr());
      if (found == temporary_of_.end()) {
        program.kept.insert(array.data_shared_ptr());
        places.push_back({address, 0, array.nbytes()});
      } else {
        auto base = static_cast<char*>(array.data_shared_ptr()->buffer.raw_ptr());
        auto first = temporaries_[found->second].line * kLine;
        places.push_back({nullptr, first + (address - base), array.nbytes()});
      }
    }
    return places;
  }

  bool is_repeatable_ = true;
  std::vector<Scheduled> calls_;
  std::vector<Temporary> temporaries_;
  std::unordered_map<Data, size_t> temporary_of_;
};

// The nodes of a graph that are no host kernels.
class OtherNodes {
 public:
  explicit OtherNodes(Arrays arrays) {
    std::unordered_set<std::uintptr_t> seen;
    while (!arrays.empty()) {
      auto array = arrays.back();
      arrays.pop_back();
      const bool is_new = seen.insert(array.id()).second;
      if (!is_new || array.status() != mx::array::Status::unscheduled) {
        continue;
      }
      if (array.has_primitive() && !is_host_kernel(array.primitive())) {
        nodes_.emplace_back(array, array.inputs());
      }
      arrays.insert(arrays.end(), array.inputs().begin(), array.inputs().end());
    }
  }

  // Whether each, evaluated, shows memory of an input.
  bool are_views() const {
    return std::all_of(nodes_.begin(), nodes_.end(), [](auto& node) {
      return std::any_of(node.second.begin(), node.second.end(), [&](auto& input) {
        return input.data_shared_ptr() == node.first.data_shared_ptr();
      });
    });
  }

 private:
  std::vector<std::pair<mx::array, Arrays>> nodes_;
};

// The memory that the recordings of a thread share. Runs that have begun keep what they use.
struct Arena {
  std::shared_ptr<mx::array> lines;

  std::shared_ptr<mx::array> of(size_t num_lines) {
    const size_t size_bytes = (num_lines + 1) * kLine;
    if (lines == nullptr || lines->nbytes() < size_bytes) {
      const mx::Shape shape{static_cast<int>(num_lines + 1), static_cast<int>(kLine)};
      lines = std::make_shared<mx::array>(mx::allocator::malloc(size_bytes), shape, mx::uint8);
    }
    return lines;
  }
};

// Its first whole line.
char* first_line(mx::array& arena) {
  auto address = reinterpret_cast<std::uintptr_t>(arena.data<char>());
  return reinterpret_cast<char*>((address + kLine - 1) / kLine * kLine);
}

std::shared_ptr<Arena> arena_of_thread() {
  static thread_local std::weak_ptr<Arena> shared;
  auto arena = shared.lock();
  if (arena == nullptr) {
    arena = std::make_shared<Arena>();
    shared = arena;
  }
  return arena;
}

// A run of a recording.
class Run : public mx::Primitive {
 public:
  Run(mx::Stream stream,
      std::shared_ptr<const Program> program,
      std::shared_ptr<mx::array> arena,
      mx::array numbers,
      std::vector<int> values)
      : Primitive(stream),
        program_(std::move(program)),
        arena_(std::move(arena)),
        numbers_(std::move(numbers)),
        values_(std::move(values)) {}

  const char* name() const override {
    return "Recording";
  }

  void eval_cpu(const Arrays&, Arrays& outputs) override {
    std::vector<metal_rpc_view> results;
    for (auto& output : outputs) {
      output.set_data(mx::allocator::malloc(output.nbytes()));
      results.push_back({output.data<char>(), output.nbytes()});
    }
    auto& encoder = mx::cpu::get_command_encoder(stream());
    note_host_work(stream());
    encoder.dispatch([program = program_,
                      arena = arena_,
                      numbers = numbers_,
                      values = std::move(values_),
                      results = std::move(results)]() mutable {
      std::memcpy(numbers.data<int>(), values.data(), values.size() * sizeof(int));
      program->run(first_line(*arena), results);
    });
  }

  void eval_gpu(const Arrays&, Arrays&) override {
    throw std::logic_error("a recording of host kernels was put on a GPU stream");
  }

 private:
  std::shared_ptr<const Program> program_;
  std::shared_ptr<mx::array> arena_;
  mx::array numbers_;
  std::vector<int> values_;
};

class HostRecording : public Recording {
 public:
  HostRecording(size_t num_numbers, mx::Stream stream)
      : stream_(stream),
        numbers_(
            mx::allocator::malloc(num_numbers * sizeof(int)),
            {static_cast<int>(num_numbers)},
            mx::int32) {}

  mx::array numbers() const override {
    return numbers_;
  }

  bool is_complete() const override {
    return program_ != nullptr;
  }

  Begun record(const int* values, const Arrays& outputs, size_t num_results) override {
    // Nothing runs that reads them.
    std::memcpy(numbers_.data<int>(), values, numbers_.nbytes());
    Arrays results(outputs.begin(), outputs.begin() + num_results);
    const OtherNodes others(outputs);
    Recorder recorder;
    Evaluation evaluation(outputs);
    if (recorder.is_repeatable() && others.are_views()) {
      program_ = recorder.program(results);
      for (auto& result : results) {
        shapes_.push_back(result.shape());
      }
    }
    return {std::move(results), std::move(evaluation)};
  }

  Begun replay(const int* values) override {
    auto run = std::make_shared<Run>(
        stream_,
        program_,
        arena_->of(program_->num_lines),
        numbers_,
        std::vector<int>(values, values + numbers_.size()));
    auto results =
        mx::array::make_arrays(shapes_, std::vector(shapes_.size(), mx::int32), run, {});
    return {results, Evaluation(results)};
  }

 private:
  mx::Stream stream_;
  mx::array numbers_;
  std::shared_ptr<Arena> arena_ = arena_of_thread();
  std::shared_ptr<const Program> program_;
  std::vector<mx::Shape> shapes_;
};

} // namespace

std::unique_ptr<Recording> new_host_recording(size_t num_numbers, mx::Stream stream) {
  return std::make_unique<HostRecording>(num_numbers, stream);
}

} // namespace metal_rpc
