"""A tokenizer's own template: the text that transformers writes, and an end to what would take for ever."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from tests.hostile import bounded_memory

from zotune.data.chat import render_chat
from zotune.data.chat_template import FAILURES, ChatTemplate, renderer
from zotune.errors import DataError

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is 2 + 2?\n"},
    {"role": "assistant", "content": "<think>\nadd\n</think>\n\n4 <b>\u00fc</b>"},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "6"},
]
# The ways of the models' templates, each in few lines.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
        "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
        "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "alternating": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] -%}"
        "{%- set loop_messages = messages[1:] -%}{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}"
        "{%- for message in loop_messages -%}\n"
        "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
        "{{ raise_exception('Conversation roles must alternate user/assistant') }}{%- endif -%}"
        "{%- if message['role'] == 'user' -%}{%- if loop.first and system is defined -%}"
        "{{ '[INST] ' + system + '\n\n' + message['content'].strip() + ' [/INST]' }}{%- else -%}"
        "{{ '[INST] ' ~ message['content'] | trim ~ ' [/INST]' }}{%- endif -%}"
        "{%- elif message['role'] == 'assistant' -%}{{ ' ' + message['content'] + eos_token }}{%- endif -%}"
        "{%- endfor -%}"
    ),
    "namespaces": (
        "{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}\n"
        "{%- for message in messages[::-1] %}\n  {%- set index = (messages|length - 1) - loop.index0 %}\n"
        "  {%- if ns.multi_step and message.role == 'user' and not (message.content.startswith('<tool') and "
        "message.content.endswith('>')) %}\n    {%- set ns.multi_step = false %}\n    {%- set ns.last = index %}\n"
        "  {%- endif %}\n{%- endfor %}\n"
        "{%- for message in messages %}\n  {%- set content = message.content if message.content is string else '' %}\n"
        "  {%- if message.role == 'assistant' and '</think>' in content %}\n"
        "    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}\n"
        "    {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"
        "    {%- if loop.index0 > ns.last %}\n{{ reasoning }}\n    {%- endif %}\n  {%- endif %}\n<|"
        "{{ message.role }}|>{{ content }}<|end|>\n{% endfor %}\n{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "macros": (
        "{%- macro one(message, depth=0) -%}[{{ message.role | upper }}:{{ message.content | tojson }}]"
        "{%- if depth < 2 -%}{{ one(message, depth + 1) }}{%- endif -%}{%- endmacro -%}"
        "{%- for m in messages -%}{{ one(m) }}{%- endfor -%}"
        "{%- macro box() -%}<{{ caller() }}>{%- endmacro -%}{% call box() %}in{% endcall %}"
        "{% set block %}{{ messages[0].content }}!{% endset %}{{ block }}{% filter upper %}up{% endfilter %}"
    ),
    "values": (
        "{{ messages | tojson(indent=4) }}{{ messages | map(attribute='role') | join(',') }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages | rejectattr('role', 'in', ['user', 'system']) | map(attribute='content') | first }}"
        "{{ tools is none }}{{ documents is defined }}{{ nothing is defined }}{{ nothing }}{{ date | default('x') }}"
        "{{ '%s-%03d' % ('a', 7) }}{{ 'a' * 3 }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ -7 % 3 }}{{ [1, 2] + [3] }}{{ 5 / 2 }}"
        "{{ '{} {:>5}'.format('a', 'b') }}{{ dict(a=1).items() | list }}{{ {'b': 2, 'a': 1} | dictsort }}"
        "{{ range(3) | list }}{{ 'x y'.split() }}{{ ' é '.strip() | title }}{{ messages[1:3] | last | length }}"
        "{{ ['b', 'a'] | sort | join }}{{ 'a,b'.replace(',', ';') }}{{ 3.7 | round | int }}{{ 'abc'[::-1] }}"
        "{{ 'line\nother' | indent(2) }}{{ [1, 2, 3] | batch(2) | list }}{{ 'q' | center(5) }}{{ 'a' ~ 1 ~ none }}"
        "{{ messages | groupby('role') | length }}{{ cycler('a', 'b').next() }}"
        "{{ [[1, 2]] | tojson(separators=(',', ':')) }}"
    ),
    "controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 3 %}{% break %}{% endif %}{% else %}none{% endfor %}"
        "{% for m in messages recursive %}{{ m.role if m is mapping else m }}"
        "{{ loop(['x']) if m is mapping else '' }}{% endfor %}"
        "{% for c in 'abc' %}{{ c }}{{ loop.revindex }}{% endfor %}"
        "{% for k, v in messages[0].items() %}{{ k }}={{ v }}{% endfor %}"
        "{% generation %}{{ messages[-1].content }}{% endgeneration %}"
        "  {% if true %}   \n  x\n  {% endif %}\ny"
    ),
}


@pytest.fixture
def tokenizer(tiny: Any) -> Any:
    """A tokenizer that gets its template from a test."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny("llama"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_of_transformers(tokenizer: Any, name: str) -> None:
    """To the character, with the tokenizer's own tokens, for every part of a chat, with and without a question."""
    tokenizer.chat_template = TEMPLATES[name]
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    for length in range(1, len(CHAT) + 1):
        for ask in (False, True):
            wanted = tokenizer.apply_chat_template(CHAT[:length], tokenize=False, add_generation_prompt=ask)
            assert renderer(tokenizer)(CHAT[:length], ask) == wanted and wanted


def test_a_demo_models_template(tokenizer: Any) -> None:
    """A chat of the demo's model: its turns are found in the text that transformers writes."""
    tokenizer.chat_template = TEMPLATES["chatml"]
    text, spans = render_chat(tokenizer, CHAT, 0)
    assert text == tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert [text[begin:end] for begin, end in spans] == [f"{CHAT[i]['content']}<|im_end|>" for i in (2, 4)]


def test_every_day_is_the_same() -> None:
    """A run that goes on tomorrow reads what it read today."""
    text = ChatTemplate("{{ strftime_now('%d %B %Y') }}")([], False, {})
    assert text == "26 July 2024"


_LONG = "{% set a = range(1000) | map('string') | join('1') %}"
HOSTILE = {
    "division": "{{ 1 / 0 }}",
    "recursion": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "two calls each": "{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}{% endmacro %}{{ a(40) }}",
    "product": "{{ 'x' * 3000000000 }}",
    "list product": "{{ [1] * 3000000000 }}",
    "numbers": "{% set a = 3 ** 2000 %}" + "{% set a = a * a %}" * 40 + "{{ a }}",
    "power": "{{ 9 ** 99999 }}",
    "overflow": "{{ 9.0 ** 9999 }}",
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops in few": "{% for a in range(1000) %}" * 3 + "{% endfor %}" * 3,
    "loops that call themselves": "{% for a in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a large range": "{{ range(10 ** 12) | list }}",
    "doubling": "{% set a = 'x' %}" + "{% set a = a ~ a %}" * 40 + "{{ a }}",
    "blocks": "{% set a = 'x' * 1000000 %}{% set b %}" + "{{ a }}" * 3000 + "{% endset %}{{ b | length }}",
    "macro output": "{% set a = 'x' * 1000000 %}{% macro m() %}"
    + "{{ a }}" * 3000
    + "{% endmacro %}{{ m() | length }}",
    "namespace": "{% set n = namespace(a='x') %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}{{ n.a }}",
    "padding": "{{ 'x'.ljust(3000000000) }}",
    "zeros": "{{ '1'.zfill(3000000000) }}",
    "centre": "{{ 'x' | center(3000000000) }}",
    "indents": "{{ ('x\n' * 100000) | indent(100000) }}",
    "tabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "batches": "{{ [1] | batch(3000000000, 'x') | list }}",
    "slices": "{{ [1] | slice(3000000000) | list }}",
    "json": "{{ [1] | tojson(indent=3000000000) }}",
    "old format": "{{ '%3000000000d' % 1 }}",
    "starred format": "{{ '%*d' % (3000000000, 1) }}",
    "format": "{{ '{:3000000000}'.format(1) }}",
    "given format": "{{ '{:{w}}'.format(1, w=3000000000) }}",
    "format filter": "{{ '%3000000000d' | format(1) }}",
    "a day": "{{ strftime_now('%3000000000d') }}",
    "stripping": _LONG + "{% for i in range(1000) %}{{ (a * 100).strip(a | replace('1', '')) }}{% endfor %}",
    "comparing": _LONG + "{% for i in range(100000) %}{% if a + 'x' == a + 'y' %}{% endif %}{% endfor %}",
    "sorting": "{% for i in range(10000) %}{{ range(10000) | sort | first }}{% endfor %}",
    "class": "{{ messages.__class__.__mro__ }}",
    "globals": "{{ raise_exception.__globals__.x }}",
    "attribute": "{{ messages | attr('__class__') | string | length }}{{ (messages | attr('__class__')).__mro__ }}",
    "inclusion": "{% include '/etc/hostname' %}",
    "import": "{% import 'os' as os %}",
    "changing": "{{ messages.append(1) }}",
    "syntax": "{% for",
    "depth": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "source": "x" * 300_000,
    "undefined": "{{ foo.bar }}",
    "key": "{{ messages[99]['x'] }}",
    "call": "{{ (1).x() }}",
    "random": "{{ messages | random }}",
    "words": "{{ lipsum() }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(tokenizer: Any, name: str) -> None:
    """Each ends in the sentence of a row that cannot be used: soon, and in bounded memory."""
    tokenizer.chat_template = HOSTILE[name]
    begun = time.process_time()
    with bounded_memory(), pytest.raises(DataError, match="the chat template refuses the row: .*Remedy"):
        render_chat(tokenizer, CHAT, 0)
    assert time.process_time() - begun < 10


def test_a_way_of_its_own() -> None:
    """A tokenizer without Jinja writes its chats itself."""

    class Own:
        def apply_chat_template(self, chat: Any, tokenize: bool, add_generation_prompt: bool) -> str:
            return f"{len(chat)} {tokenize} {add_generation_prompt}"

    assert renderer(Own())(CHAT, True) == "5 False True"


def test_a_budget_for_each_chat() -> None:
    """What one chat has used up is not taken from the next; a longer chat may take longer."""
    template = ChatTemplate(
        "{% for m in messages %}{% for i in range(400) %}{{ m.content[:1] }}{% endfor %}{% endfor %}"
    )
    for _ in range(3):
        assert re.fullmatch("B*", template(CHAT[:1] * 10, False, {}))
    with pytest.raises(FAILURES, match="too many steps"):
        ChatTemplate("{% for m in range(900) %}{% for i in range(900) %}{{ i }}{% endfor %}{% endfor %}")(
            CHAT, False, {}
        )
