#include "product_choice.h"

#include <ATen/Context.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <limits>
#include <utility>

namespace vae_fast {
namespace ops {
namespace {

/// The libraries take turns, so that a slow spell of the machine hits both; the shortest time of each counts.
constexpr int kLeastTurns = 3, kMostTurns = 12;
/// Seconds of turns that are enough.
constexpr double kEnough = 8e-3;
/// oneDNN is taken for a real advantage only: where both are as fast the choice would differ from run to run.
constexpr double kAdvantage = 0.97;

enum class Mode { kAuto, kBlas, kOneDnn };
std::atomic<Mode> mode{Mode::kAuto};

using Timer = std::function<double(const std::string&, const std::string&)>;

std::mutex process_mutex;
std::map<std::string, Library> of_process;
Timer& timer() {
  static Timer* kept = new Timer();  // never destroyed: it may hold a Python function, and Python ends first
  return *kept;
}
thread_local std::shared_ptr<ProductRun> current;

const char* word(Library library) { return library == Library::kBlas ? "blas" : "onednn"; }

Library library_of(const std::string& text, const std::string& name) {
  if (text == "blas") return Library::kBlas;
  TORCH_CHECK_VALUE(text == "onednn", "products: '", name, "' is '", text, "': expected 'blas' or 'onednn'");
  return Library::kOneDnn;
}

double seconds_of(const std::function<void(Library)>& once, Library library) {
  const auto begin = std::chrono::steady_clock::now();
  once(library);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

Library measured(const std::string& name, const std::function<void(Library)>& once) {
  constexpr Library libraries[2] = {Library::kBlas, Library::kOneDnn};
  double best[2] = {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
  Timer given;
  {
    const std::lock_guard<std::mutex> lock(process_mutex);
    given = timer();
  }
  if (given) {
    for (int i = 0; i < 2; ++i) best[i] = given(name, word(libraries[i]));
  } else {
    for (const Library library : libraries) once(library);  // they set themselves up
    double total = 0.0;
    for (int turn = 0; turn < kMostTurns && (turn < kLeastTurns || total < kEnough); ++turn) {
      for (int i = 0; i < 2; ++i) {
        const int which = (turn + i) % 2;
        const double taken = seconds_of(once, libraries[which]);
        best[which] = std::min(best[which], taken);
        total += taken;
      }
    }
  }
  return best[1] < kAdvantage * best[0] ? Library::kOneDnn : Library::kBlas;
}

Library of_this_process(const std::string& name, const std::function<void(Library)>& once) {
  {
    const std::lock_guard<std::mutex> lock(process_mutex);
    const auto found = of_process.find(name);
    if (found != of_process.end()) return found->second;
  }
  const Library library = measured(name, once);  // without the lock: other threads' products go on
  const std::lock_guard<std::mutex> lock(process_mutex);
  return of_process.emplace(name, library).first->second;
}

}  // namespace

ProductRun::ProductRun(const ProductTable& recorded) {
  for (const auto& [name, text] : recorded) chosen_.emplace(name, library_of(text, name));
}

ProductTable ProductRun::table() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  ProductTable words;
  for (const auto& [name, library] : chosen_) words.emplace(name, word(library));
  return words;
}

std::shared_ptr<ProductRun> enter_product_run(std::shared_ptr<ProductRun> run) { return std::exchange(current, std::move(run)); }

std::string set_product_mode(const std::string& text) {
  static const char* const words[3] = {"auto", "blas", "onednn"};
  const auto at = std::find(std::begin(words), std::end(words), text) - std::begin(words);
  TORCH_CHECK_VALUE(at < 3, "VAE_FAST_PRODUCTS='", text, "': expected one of auto, blas, onednn");
  return words[static_cast<int>(mode.exchange(static_cast<Mode>(at)))];
}

void set_product_timer(Timer given) {
  const std::lock_guard<std::mutex> lock(process_mutex);
  timer() = std::move(given);
  of_process.clear();
}

Library choose_library(const std::string& name, const std::function<void(Library)>& once) {
  const Mode wanted = mode.load();
  const std::shared_ptr<ProductRun> run = current;
  if (wanted == Mode::kAuto && run) {
    const std::lock_guard<std::mutex> lock(run->mutex_);
    const auto found = run->chosen_.find(name);
    if (found != run->chosen_.end()) return found->second;
  }
  Library library = wanted == Mode::kOneDnn ? Library::kOneDnn : Library::kBlas;
  if (wanted == Mode::kAuto && !at::globalContext().deterministicAlgorithms()) library = of_this_process(name, once);
  if (!run) return library;
  const std::lock_guard<std::mutex> lock(run->mutex_);
  return run->chosen_[name] = library;
}

}  // namespace ops
}  // namespace vae_fast
