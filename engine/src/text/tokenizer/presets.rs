//! The pre-tokenizers that GGUF files name in `tokenizer.ggml.pre`.
//!
//! The expressions are those of the models' own `tokenizer.json`, as far as these are regular
//! expressions; parts such as "digits one by one" are written as one.

/// A named way of cutting text, with what the name implies besides.
#[derive(Debug)]
pub(super) struct Preset {
    /// Names in `tokenizer.ggml.pre`.
    pub(super) names: &'static [&'static str],
    /// Regular expressions, applied one after the other.
    pub(super) patterns: &'static [&'static str],
    /// Whether a piece that is a token is taken whole, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// What holds where the file has no `add_bos_token`.
    pub(super) add_bos: bool,
    /// What holds where the file has no `add_sep_token`.
    pub(super) add_sep: bool,
    /// Byte-level alphabet; otherwise plain characters with U+2581 for the space.
    pub(super) byte_level: bool,
}

/// What most names imply.
const PLAIN: Preset = Preset {
    names: &[],
    patterns: &[],
    ignore_merges: false,
    add_bos: false,
    add_sep: false,
    byte_level: true,
};

/// English contractions in any case.
macro_rules! contractions {
    () => {
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
    };
}

/// The family of GPT-4's expression: contractions, words, `$digits`, signs with the line breaks
/// after them, line breaks, spaces.
macro_rules! gpt4_family {
    ($digits:literal) => {
        concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )
    };
}

/// The family of GPT-4o's expression: words are cut where lower case turns to upper case.
/// `$letters_upper` and `$letters_lower` are the classes, `$suffix` may follow a word.
macro_rules! gpt4o_family {
    ($upper:literal, $lower:literal, $suffix:expr, $rest:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?",
            $upper,
            "*",
            $lower,
            "+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?",
            $upper,
            "+",
            $lower,
            "*",
            $suffix,
            $rest
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = gpt4_family!(r"\p{N}{1,3}");
const QWEN2: &str = gpt4_family!(r"\p{N}");
const GPT4O: &str = gpt4o_family!(
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    concat!(contractions!(), "?"),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = gpt4o_family!(
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    "",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const KIMI: &str = concat!(
    r"\p{Han}+|",
    gpt4o_family!(
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
        r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]",
        concat!(contractions!(), "?"),
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
);
/// Chinese and Japanese characters in a row.
const CJK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";
/// Signs glued to ASCII words, words with marks, signs, line breaks, spaces.
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Words between sentence marks.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
/// Lines and line breaks, for vocabularies whose merges run over whole lines.
const LINES: &str = r"[^\n]+|\n+";

const PRESETS: &[Preset] = &[
    Preset {
        // also what files without a name get
        names: &["default"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    Preset {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        patterns: &[LLAMA3],
        ignore_merges: true,
        add_bos: true,
        ..PLAIN
    },
    Preset { names: &["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], patterns: &[LLAMA3], ..PLAIN },
    Preset {
        names: &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
        ],
        patterns: &[GPT2],
        ..PLAIN
    },
    Preset {
        names: &["jina-v1-en", "jina-v2-code", "roberta-bpe"],
        patterns: &[GPT2],
        add_sep: true,
        ..PLAIN
    },
    Preset {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        patterns: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Preset {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "megrez",
            "grok-2",
            "kormo",
            "f2llmv2",
        ],
        patterns: &[QWEN2],
        ..PLAIN
    },
    Preset {
        names: &["qwen35"],
        patterns: &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ..PLAIN
    },
    Preset {
        names: &["falcon"],
        patterns: &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
        ..PLAIN
    },
    Preset {
        names: &["deepseek-llm"],
        patterns: &[
            r"[\r\n]",
            concat!(
                r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ",
                r"Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ\u{1F5F}-\u{1F7D}ᾀ-ᾴᾶ-ᾼ\u{1FBE}ῂ-ῄῆ-ῌ\u{1FD0}-\u{1FD3}\u{1FD6}-\u{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ",
                r"ℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212A}-ℭℯ-ℴℹ",
                r"ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
            ),
            r"\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            r"[一-龥ࠀ-一가-\u{D7FF}]+",
            r"\p{N}+",
        ],
        ..PLAIN
    },
    Preset {
        names: &["deepseek-coder"],
        patterns: &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-\u{D7FF}]+", r"\p{N}"],
        ..PLAIN
    },
    Preset {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        patterns: &[r"\p{N}{1,3}", CJK, DEEPSEEK3],
        ..PLAIN
    },
    Preset {
        names: &["youtu"],
        patterns: &[
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u{3040}-ゟ゠-ヿ]+",
            gpt4o_family!(
                r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
                r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
                concat!(contractions!(), "?"),
                r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
        ],
        ignore_merges: true,
        ..PLAIN
    },
    Preset { names: &["poro-chat", "bloom", "gpt3-finnish"], patterns: &[BLOOM], ..PLAIN },
    Preset { names: &["viking"], patterns: &[BLOOM, r"\p{N}"], ..PLAIN },
    Preset { names: &["tekken"], patterns: &[TEKKEN], ignore_merges: true, add_bos: true, ..PLAIN },
    Preset {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        patterns: &[GPT4O],
        ..PLAIN
    },
    Preset { names: &["kimi-k2"], patterns: &[KIMI], ..PLAIN },
    Preset {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        patterns: &[concat!(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*",
            r"|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        ..PLAIN
    },
    Preset {
        names: &["seed-coder"],
        patterns: &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
        )],
        ..PLAIN
    },
    Preset {
        names: &["exaone-moe"],
        patterns: &[concat!(
            contractions!(),
            r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
        )],
        ..PLAIN
    },
    Preset {
        names: &["minicpm5"],
        patterns: &[r"\p{N}{1,3}", gpt4_family!(r"\p{N}+")],
        ignore_merges: true,
        ..PLAIN
    },
    Preset {
        names: &["chameleon"],
        patterns: &[
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            GPT2,
        ],
        add_bos: true,
        ..PLAIN
    },
    Preset {
        names: &["gemma4", "granite-embed-multi-311m"],
        patterns: &[LINES],
        add_bos: true,
        byte_level: false,
        ..PLAIN
    },
];

/// The preset of a name.
pub(super) fn find(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|preset| preset.names.contains(&name))
}

/// All presets, for tests.
#[cfg(test)]
pub(super) fn all() -> &'static [Preset] {
    PRESETS
}
