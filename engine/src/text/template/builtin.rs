//! Templates for model files that carry none.

/// A template of the program itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuiltinTemplate {
    /// Its name, as messages show it.
    pub name: &'static str,
    /// Jinja source.
    pub source: &'static str,
}

/// Roles between `<|im_start|>` and `<|im_end|>`: what most models without a template follow.
const CHATML: BuiltinTemplate = BuiltinTemplate {
    name: "chatml",
    source: "{% for message in messages %}\
             {{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\
             {% endfor %}\
             {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
};

/// Llama 3: headers, then `<|eot_id|>`.
const LLAMA3: BuiltinTemplate = BuiltinTemplate {
    name: "llama3",
    source: "{{ bos_token }}{% for message in messages %}\
             {{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}\
             {{ message.content | trim + '<|eot_id|>' }}{% endfor %}\
             {% if add_generation_prompt %}\
             {{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
};

/// Gemma: the assistant is called model, a system message opens the first turn of the user.
const GEMMA: BuiltinTemplate = BuiltinTemplate {
    name: "gemma",
    source: "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}\
             {% if message.role == 'system' %}{% set ns.system = message.content + '\\n\\n' %}\
             {% else %}{% set role = 'model' if message.role == 'assistant' else message.role %}\
             {{ '<start_of_turn>' + role + '\\n' + ns.system + message.content | trim }}\
             {{ '<end_of_turn>\\n' }}{% set ns.system = '' %}{% endif %}{% endfor %}\
             {% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}",
};

/// Llama 2 and the first Mistral models.
const LLAMA2: BuiltinTemplate = BuiltinTemplate {
    name: "llama2",
    source: "{% set ns = namespace(system='') %}{% for message in messages %}\
             {% if message.role == 'system' %}\
             {% set ns.system = '<<SYS>>\\n' + message.content + '\\n<</SYS>>\\n\\n' %}\
             {% elif message.role == 'assistant' %}\
             {{ ' ' + message.content | trim + ' ' + eos_token }}\
             {% else %}{{ bos_token + '[INST] ' + ns.system + message.content | trim + ' [/INST]' }}\
             {% set ns.system = '' %}{% endif %}{% endfor %}",
};

/// Marks by which a vocabulary tells its format, and the template for it; the first row whose
/// mark is a token of the vocabulary is taken.
const BY_TOKEN: [(&str, BuiltinTemplate); 4] = [
    ("<|im_start|>", CHATML),
    ("<|start_header_id|>", LLAMA3),
    ("<start_of_turn>", GEMMA),
    ("[INST]", LLAMA2),
];

/// The template for a model whose file has none, chosen by the tokens of its vocabulary; ChatML
/// where these tell nothing.
pub fn builtin(has_token: impl Fn(&str) -> bool) -> BuiltinTemplate {
    BY_TOKEN.iter().find(|(mark, _)| has_token(mark)).map_or(CHATML, |(_, template)| *template)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::text::template::{ChatTemplate, CivilTime, Conversation};

    #[test]
    fn builtin_templates_render() {
        let messages = json!([
            {"role": "system", "content": "S"}, {"role": "user", "content": "U"},
            {"role": "assistant", "content": "A"}, {"role": "user", "content": "V"},
        ]);
        for (mark, expected) in [
            (
                "<|im_start|>",
                "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n\
                 <|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n\
                 <|im_start|>assistant\n",
            ),
            (
                "<|start_header_id|>",
                "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>\
                 <|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>\
                 <|start_header_id|>assistant<|end_header_id|>\n\n",
            ),
            (
                "<start_of_turn>",
                "<s><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\nA\
                 <end_of_turn>\n<start_of_turn>user\nV<end_of_turn>\n<start_of_turn>model\n",
            ),
            ("[INST]", "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nU [/INST] A </s><s>[INST] V [/INST]"),
        ] {
            let template = builtin(|token| token == mark);
            let text = ChatTemplate::new(template.source, "<s>", "</s>")
                .expect("compiles")
                .render(&Conversation {
                    messages: &messages,
                    tools: None,
                    add_generation_prompt: true,
                    variables: None,
                    now: CivilTime::from_unix(0),
                })
                .expect("renders");
            assert_eq!(text, expected, "{}", template.name);
        }
        assert_eq!(builtin(|_| false), CHATML);
    }
}
