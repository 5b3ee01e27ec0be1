"""Chat templates in the shapes of published models, in our own words: same tokens around a request, nothing more."""

from __future__ import annotations

SYSTEM_FIRST = (
    "{%- if messages[0]['role'] == 'system' -%}"
    "{%- set told = messages[0]['content'] -%}{%- set turns = messages[1:] -%}"
    "{%- else -%}{%- set told = none -%}{%- set turns = messages -%}{%- endif -%}"
)
NO_SYSTEM = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}"

# Llama 3.1: a header around every role, the date in a system turn that is always there, BOS from the template.
LLAMA_3 = (
    "{{- bos_token -}}"
    "{%- if not date_string is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}{%- endif -%}"
    + SYSTEM_FIRST
    + "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' -}}"
    "{{- (told or '') + '<|eot_id|>' -}}"
    "{%- for turn in turns -%}"
    "{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' + turn['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)

# Gemma 1 and 2: turns, the assistant is called model, a system message is an error, BOS from the template.
GEMMA = (
    "{{- bos_token -}}" + NO_SYSTEM + "{%- for turn in messages -%}"
    "{%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}"
    "{{- '<start_of_turn>' + role + '\\n' + turn['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)

# Gemma 3: the system message stands at the head of the first user turn.
GEMMA_3 = (
    "{{- bos_token -}}" + SYSTEM_FIRST + "{%- for turn in turns -%}"
    "{%- set role = 'model' if turn['role'] == 'assistant' else turn['role'] -%}"
    "{{- '<start_of_turn>' + role + '\\n' + (told + '\\n\\n' if loop.first and told else '') -}}"
    "{{- turn['content'] | trim + '<end_of_turn>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"
)

CHATML_TURNS = (
    "{%- for turn in turns -%}"
    "{{- '<|im_start|>' + turn['role'] + '\\n' + turn['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
)

# Qwen 2: ChatML without BOS, with a system message of its own where none is given.
QWEN_2 = (
    SYSTEM_FIRST
    + "{%- set told = 'You are a helpful assistant.' if told is none else told -%}"
    + "{{- '<|im_start|>system\\n' + told + '<|im_end|>\\n' -}}"
    + CHATML_TURNS
    + "{%- endif -%}"
)

# Qwen 3: ChatML, no system message of its own, a switch that closes the thought before it begins.
QWEN_3 = (
    SYSTEM_FIRST
    + "{%- if told is not none -%}{{- '<|im_start|>system\\n' + told + '<|im_end|>\\n' -}}{%- endif -%}"
    + CHATML_TURNS
    + "{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)

# The thinking Qwen 3 of 2507, and QwQ: the thought is opened, and there is no switch.
QWEN_3_THINKING = (
    SYSTEM_FIRST
    + "{%- if told is not none -%}{{- '<|im_start|>system\\n' + told + '<|im_end|>\\n' -}}{%- endif -%}"
    + CHATML_TURNS
    + "{{- '<think>\\n' -}}{%- endif -%}"
)

DEEPSEEK_TURNS = (
    "{{- bos_token -}}" + SYSTEM_FIRST + "{{- told or '' -}}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}{{- '<｜User｜>' + turn['content'] -}}"
    "{%- else -%}{{- '<｜Assistant｜>' + turn['content'].split('</think>')[-1] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)

# DeepSeek-V3.1: nothing closes a user turn; a switch called thinking, off by default, writes the closing tag alone.
DEEPSEEK_V31 = (
    DEEPSEEK_TURNS + "{%- if not thinking is defined -%}{%- set thinking = false -%}{%- endif -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<｜Assistant｜>' + ('<think>' if thinking else '</think>') -}}{%- endif -%}"
)

# DeepSeek-R1: a thought is opened, as of its later template, or expected and not opened, as of its first.
DEEPSEEK_R1 = DEEPSEEK_TURNS + "{%- if add_generation_prompt -%}{{- '<｜Assistant｜><think>\\n' -}}{%- endif -%}"
DEEPSEEK_R1_FIRST = DEEPSEEK_TURNS + "{%- if add_generation_prompt -%}{{- '<｜Assistant｜>' -}}{%- endif -%}"

# Mistral: [INST] in tokens of its own, the system message at the head of the last request.
MISTRAL = (
    "{{- bos_token -}}" + SYSTEM_FIRST + "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'user' -%}"
    "{{- '[INST]' + (told + '\\n\\n' if loop.last and told else '') + turn['content'] + '[/INST]' -}}"
    "{%- else -%}{{- turn['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)

# Mixtral: [INST] in plain text, strict alternation, so that a system message is an error.
MIXTRAL = (
    "{{- bos_token -}}"
    "{%- for turn in messages -%}"
    "{%- if (turn['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}{%- endif -%}"
    "{%- if turn['role'] == 'user' -%}{{- '[INST] ' + turn['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- turn['content'] + eos_token -}}{%- endif -%}"
    "{%- endfor -%}"
)

# Phi-3: a token per role; BOS is left to the tokenizer, so that a rendered request has none.
PHI_3 = (
    "{%- for turn in messages -%}"
    "{{- '<|' + turn['role'] + '|>\\n' + turn['content'] + '<|end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)

# GPT-OSS, harmony: a system turn of its own with the date, the caller's as a developer's, and no channel opened.
HARMONY = (
    SYSTEM_FIRST
    + "{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '\\nReasoning: low' + '<|end|>' -}}"
    "{%- if told -%}{{- '<|start|>developer<|message|># Instructions\\n\\n' + told + '<|end|>' -}}{%- endif -%}"
    "{%- for turn in turns -%}"
    "{%- if turn['role'] == 'assistant' -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + turn['content'] + '<|end|>' -}}"
    "{%- else -%}{{- '<|start|>' + turn['role'] + '<|message|>' + turn['content'] + '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)

# GLM-4: two tokens of its own at the head, a line per role, nothing that closes a turn.
GLM_4 = (
    "{{- '[gMASK]<sop>' -}}"
    "{%- for turn in messages -%}{{- '<|' + turn['role'] + '|>\\n' + turn['content'] -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)

# OLMo 2: roles in plain text, so that they fall into several tokens, the first of which may merge with a request's end.
OLMO_2 = (
    "{{- bos_token -}}"
    "{%- for turn in messages -%}{{- '<|' + turn['role'] + '|>\\n' + turn['content'] + '\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"
)
