// SPDX-License-Identifier: MIT
// The handlers that the table of routes names; each group in a file of its own.
#pragma once

#include "base/result.h"
#include "server/router.h"

namespace sh::server {

// info_routes.cpp
void get_health(Call call);
void get_models(Call call);
void get_props(Call call);
void post_props(Call call);
void get_slots(Call call);
void get_slot_compaction(Call call);
// metrics.cpp
void get_metrics(Call call);
// text_routes.cpp
void post_tokenize(Call call);
void post_detokenize(Call call);
void post_apply_template(Call call);
// compact_route.cpp
/// The slot that a path names. Errors: invalid_argument.
Result<int32_t> slot_of(const Call& call);
void post_compact(Call call);
void post_slot_action(Call call);
// native_completion.cpp
void post_native_completion(Call call);
// openai_completion.cpp
void post_openai_completion(Call call);
// openai_chat.cpp
void post_openai_chat(Call call);

}  // namespace sh::server
