#!/usr/bin/env python3
"""Measures trefoil against ready-built llama.cpp libraries, taking turns run by run.

Nothing but the Python standard library is needed, and no network. The libraries are those of the
npm packages @node-llama-cpp/linux-x64 or @node-llama-cpp/linux-x64-vulkan, version 3.22.1:

    npm pack @node-llama-cpp/linux-x64@3.22.1
    tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    benches/peers/llama_cpp.py MODEL.gguf --libraries package/bins/linux-x64 \\
        --trefoil target/release/trefoil -p 512 -n 128 -d 0,4096 -b 1,8

Both read the same file, the same prompt lengths, depths and batches; what fills the KV cache before
a run is not timed. Each case runs once on either side uncounted, then --runs times in turns. Ratios
are trefoil's rate by llama.cpp's, turn by turn: their median says more than the two rates where a
machine is shared. --only llama measures llama.cpp alone.

llama.cpp's parameters are its defaults (f16 KV cache, batches of 2048 in steps of 512, weights
repacked at load where it does so) except for those that the flags name.
"""

import argparse
import csv
import ctypes
import glob
import json
import os
import statistics
import subprocess
import sys
import time
from ctypes import c_bool, c_char_p, c_float, c_int8, c_int32, c_size_t, c_uint32, c_void_p

LIBRARY_VERSION = "0.5.0"


class ModelParams(ctypes.Structure):
    """llama_model_params of version 0.5.0."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """llama_context_params of version 0.5.0."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", ctypes.POINTER(c_int32)),
        ("embd", ctypes.POINTER(c_float)),
        ("pos", ctypes.POINTER(c_int32)),
        ("n_seq_id", ctypes.POINTER(c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(c_int32))),
        ("logits", ctypes.POINTER(c_int8)),
    ]


# Defaults that tell a layout from a shifted one.
EXPECTED_MODEL = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "main_gpu": 0,
                  "vocab_only": False, "use_extra_bufts": True}
EXPECTED_CONTEXT = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1,
                    "rope_scaling_type": -1, "pooling_type": -1, "attention_type": -1,
                    "flash_attn_type": -1, "yarn_ext_factor": -1.0, "defrag_thold": -1.0,
                    "type_k": 1, "type_v": 1, "embeddings": False, "offload_kqv": True,
                    "no_perf": True, "op_offload": True, "swa_full": True, "kv_unified": False}


class PeerError(Exception):
    """What went wrong, for the user."""


LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, c_char_p, c_void_p)


class Llama:
    """One model in llama.cpp, with a context for all cases."""

    def __init__(self, folder, verbose):
        def found(pattern):
            paths = sorted(glob.glob(os.path.join(folder, pattern)))
            if not paths:
                raise PeerError(f"{folder}: expected the libraries of @node-llama-cpp "
                                f"(bins/linux-x64 or bins/linux-x64-vulkan), found no {pattern}")
            return paths[0]

        folder = os.path.abspath(folder)
        # In the order of what needs what.
        for pattern in ["libggml-base.so", "libggml.*so", "libllama.*so"]:
            self.library = ctypes.CDLL(found(pattern), mode=ctypes.RTLD_GLOBAL)
            if pattern == "libggml.*so":
                ggml = self.library
        if not verbose:
            # Kept, so that it outlives the libraries' use of it.
            self.silent = LOG_CALLBACK(lambda level, text, data: None)
            self.library.llama_log_set(self.silent, None)
            ggml.ggml_log_set(self.silent, None)
        self.declare()
        version = self.library.llama_version().decode()
        if not version.startswith(LIBRARY_VERSION):
            raise PeerError(f"expected llama.cpp {LIBRARY_VERSION} (package version 3.22.1), got "
                            f"{version}: its structures may be laid out in another way")
        self.version = version
        ggml.ggml_backend_load_all_from_path.argtypes = [c_char_p]
        ggml.ggml_backend_load_all_from_path(folder.encode())
        self.library.llama_backend_init()
        ggml.ggml_backend_dev_get.restype = c_void_p
        ggml.ggml_backend_dev_get.argtypes = [c_size_t]
        ggml.ggml_backend_dev_count.restype = c_size_t
        for name in ["name", "description"]:
            get = getattr(ggml, f"ggml_backend_dev_{name}")
            get.restype, get.argtypes = c_char_p, [c_void_p]
        self.devices = []
        for index in range(ggml.ggml_backend_dev_count()):
            device = ggml.ggml_backend_dev_get(index)
            name = ggml.ggml_backend_dev_name(device).decode()
            self.devices.append(f"{name} ({ggml.ggml_backend_dev_description(device).decode()})")

    def declare(self):
        library = self.library
        for name, result, arguments in [
            ("llama_version", c_char_p, []),
            ("llama_model_default_params", ModelParams, []),
            ("llama_context_default_params", ContextParams, []),
            ("llama_model_load_from_file", c_void_p, [c_char_p, ModelParams]),
            ("llama_init_from_model", c_void_p, [c_void_p, ContextParams]),
            ("llama_model_get_vocab", c_void_p, [c_void_p]),
            ("llama_vocab_n_tokens", c_int32, [c_void_p]),
            ("llama_model_size", ctypes.c_uint64, [c_void_p]),
            ("llama_batch_init", Batch, [c_int32, c_int32, c_int32]),
            ("llama_decode", c_int32, [c_void_p, Batch]),
            ("llama_get_memory", c_void_p, [c_void_p]),
            ("llama_memory_clear", None, [c_void_p, c_bool]),
            ("llama_memory_seq_rm", c_bool, [c_void_p, c_int32, c_int32, c_int32]),
            ("llama_synchronize", None, [c_void_p]),
            ("llama_get_logits_ith", ctypes.POINTER(c_float), [c_void_p, c_int32]),
            ("llama_free", None, [c_void_p]),
            ("llama_model_free", None, [c_void_p]),
        ]:
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments

    @staticmethod
    def check(params, expected, name):
        """Refuses parameters whose defaults are not those of the layout that is written here."""
        for field, want in expected.items():
            got = getattr(params, field)
            if got != want:
                raise PeerError(f"{name}.{field}: expected the default {want}, got {got}: the "
                                "libraries have another layout")
        return params

    def defaults(self):
        model = self.check(self.library.llama_model_default_params(), EXPECTED_MODEL,
                           "llama_model_params")
        context = self.check(self.library.llama_context_default_params(), EXPECTED_CONTEXT,
                             "llama_context_params")
        return model, context

    def load(self, path, arguments, cases):
        params, self.context_params = self.defaults()
        params.n_gpu_layers = arguments.gpu_layers
        self.model = self.library.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise PeerError(f"{path}: llama.cpp cannot load it; --verbose says why")
        vocabulary = self.library.llama_vocab_n_tokens(self.library.llama_model_get_vocab(self.model))
        self.token = lambda sequence, position: (
            (position * 7919 + sequence * 104729 + 13) % vocabulary)
        self.arguments = arguments
        self.need = max(case["depth"] + case["tokens"] for case in cases)
        self.context, self.batch_size = None, 0
        self.batch = self.library.llama_batch_init(max(self.context_params.n_batch, 512), 0, 1)

    def set_up(self, sequences):
        """A context for so many sequences, each as long as any case needs."""
        if self.batch_size == sequences:
            return
        if self.context:
            self.library.llama_free(self.context)
        params = self.library.llama_context_default_params()
        per_sequence = (self.need + 255) // 256 * 256
        params.n_ctx = per_sequence * sequences
        params.n_seq_max = sequences
        threads = self.arguments.threads or physical_cores()
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = {"auto": -1, "off": 0, "on": 1}[self.arguments.flash_attention]
        self.context = self.library.llama_init_from_model(self.model, params)
        if not self.context:
            raise PeerError(f"no context of {params.n_ctx} tokens; --verbose says why")
        self.memory = self.library.llama_get_memory(self.context)
        self.batch_size = sequences
        self.filled = 0

    def decode(self, rows):
        """One call with rows of (token, position, sequence, is the output wanted)."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = sequence
            batch.logits[index] = wanted
        status = self.library.llama_decode(self.context, batch)
        if status != 0:
            raise PeerError(f"llama_decode: status {status}")

    def read(self, sequence, start, end, last_wanted):
        """Reads positions of one sequence, as many a call as the context takes."""
        most = self.context_params.n_batch
        while start < end:
            stop = min(end, start + most)
            self.decode([(self.token(sequence, position), position, sequence,
                          int(last_wanted and position == end - 1))
                         for position in range(start, stop)])
            start = stop

    def run(self, case):
        """Seconds that a case's work takes, filling the KV cache before it left out."""
        depth, tokens, batch = case["depth"], case["tokens"], case.get("batch", 1)
        self.set_up(batch)
        keep = min(self.filled, depth)
        for sequence in range(batch):
            if keep == 0:
                self.library.llama_memory_clear(self.memory, False)
            elif not self.library.llama_memory_seq_rm(self.memory, sequence, keep, -1):
                raise PeerError("llama.cpp cannot shorten a sequence of this model")
        for sequence in range(batch):
            self.read(sequence, keep, depth, False)
        self.filled = depth
        self.library.llama_synchronize(self.context)
        start = time.perf_counter()
        if case["work"] == "prompt":
            self.read(0, depth, depth + tokens, True)
            self.library.llama_get_logits_ith(self.context, -1)
        else:
            for position in range(depth, depth + tokens):
                self.decode([(self.token(sequence, position), position, sequence, 1)
                             for sequence in range(batch)])
                # Waits for the step, as whoever samples must.
                self.library.llama_get_logits_ith(self.context, -1)
        self.library.llama_synchronize(self.context)
        return time.perf_counter() - start


class Trefoil:
    """`trefoil bench --wait`."""

    def __init__(self, path, arguments):
        command = [arguments.trefoil, "bench", path, "--wait"]
        for flag in ["prompt", "generate", "depth", "batch"]:
            command += [f"--{flag}", ",".join(map(str, getattr(arguments, flag)))]
        command += ["--threads", str(arguments.threads or physical_cores())]
        command += arguments.trefoil_flag
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)
        self.cases = self.answer()["cases"]

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise PeerError(f"trefoil ended with status {self.process.wait()}")
        return json.loads(line)

    def run(self, case):
        self.process.stdin.write(case["case"] + "\n")
        self.process.stdin.flush()
        return self.answer()["seconds"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def physical_cores():
    """Cores without their second threads: what both programs use by default."""
    pairs = set()
    for path in glob.glob("/sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"):
        with open(path, encoding="ascii") as file:
            pairs.add(file.read().strip())
    return min(len(pairs), len(os.sched_getaffinity(0))) or os.cpu_count()


def own_cases(arguments):
    """The cases of the flags, named and ordered as trefoil does."""
    cases = []
    batches = sorted(set(arguments.batch) | {1})
    for batch in batches:
        for depth in sorted(set(arguments.depth)):
            at = f" @ d{depth}" if depth else ""
            if batch == 1:
                cases += [{"case": f"pp{n}{at}", "work": "prompt", "tokens": n, "depth": depth}
                          for n in sorted(set(arguments.prompt)) if n]
            if batch in arguments.batch:
                name = "" if batch == 1 else f" b{batch}"
                cases += [{"case": f"tg{n}{name}{at}", "work": "generate", "tokens": n,
                           "depth": depth, "batch": batch}
                          for n in sorted(set(arguments.generate)) if n]
    return cases


def quartiles(values):
    """Lower quartile, median, upper quartile."""
    values = sorted(values)
    at = lambda share: values[round((len(values) - 1) * share)]
    return at(0.25), statistics.median(values), at(0.75)


def measure(case, sides, runs):
    """Rates in tokens a second by side, run by run: one run each uncounted, then in turns."""
    tokens = case["tokens"] * case.get("batch", 1)
    rates = {name: [] for name in sides}
    for turn in range(runs + 1):
        # Who begins changes from turn to turn.
        order = list(sides.items())
        for name, side in order if turn % 2 else reversed(order):
            rate = tokens / side.run(case)
            if turn:
                rates[name].append(rate)
    return rates


def cell(values, form):
    low, median, high = quartiles(values)
    return f"{median:{form}} ({low:{form}} to {high:{form}})"


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text):
        try:
            values = [int(part) for part in text.split(",")]
        except ValueError:
            values = [-1]
        if min(values) < 0:
            raise argparse.ArgumentTypeError(f"expected whole numbers such as 0,512, got {text!r}")
        return values

    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--libraries", required=True, metavar="DIR",
                        help="folder of the llama.cpp libraries (bins/linux-x64*)")
    parser.add_argument("--trefoil", default="trefoil", metavar="PATH", help="the program")
    parser.add_argument("--only", choices=["llama"], help="measure one side alone")
    parser.add_argument("-p", "--prompt", type=numbers, default=[512], metavar="LIST")
    parser.add_argument("-n", "--generate", type=numbers, default=[128], metavar="LIST")
    parser.add_argument("-d", "--depth", type=numbers, default=[0], metavar="LIST")
    parser.add_argument("-b", "--batch", type=numbers, default=[1], metavar="LIST")
    parser.add_argument("-r", "--runs", type=int, default=5, metavar="N")
    parser.add_argument("-t", "--threads", type=int, default=0, metavar="N",
                        help="threads of both [default: one per physical core]")
    parser.add_argument("--gpu-layers", type=int, default=0, metavar="N",
                        help="layers that llama.cpp puts on a GPU; -1 for all [default: 0]")
    parser.add_argument("--flash-attention", choices=["auto", "on", "off"], default="auto")
    parser.add_argument("--trefoil-flag", action="append", default=[], metavar="FLAG",
                        help="flag for trefoil, such as --trefoil-flag=--device=cpu0; repeatable")
    parser.add_argument("--csv", metavar="FILE", help="write every run")
    parser.add_argument("--verbose", action="store_true", help="show llama.cpp's log")
    arguments = parser.parse_args()
    if arguments.runs < 1:
        parser.error("--runs: expected at least 1")
    arguments.batch = [batch for batch in arguments.batch if batch]
    return arguments


def main():
    arguments = parse()
    trefoil = None
    if arguments.only:
        cases = own_cases(arguments)
    else:
        trefoil = Trefoil(arguments.model, arguments)
        cases = trefoil.cases
    if not cases:
        raise PeerError("nothing to measure: expected a length above 0")
    llama = Llama(arguments.libraries, arguments.verbose)
    llama.load(arguments.model, arguments, cases)
    sides = {"llama.cpp": llama}
    if trefoil:
        sides["trefoil"] = trefoil
    print(f"{os.path.basename(arguments.model)}, llama.cpp {llama.version} on "
          f"{', '.join(llama.devices)}; {arguments.threads or physical_cores()} threads, "
          f"{arguments.gpu_layers} GPU layers, flash attention {arguments.flash_attention}; "
          f"medians of {arguments.runs} (quartiles)\n")
    titles = ["test"] + [f"{name}, tokens/s" for name in reversed(sides)]
    if trefoil:
        titles.append("trefoil / llama.cpp")
    print("| " + " | ".join(titles) + " |")
    print("|---" * len(titles) + "|", flush=True)
    table = []
    for case in cases:
        rates = measure(case, sides, arguments.runs)
        cells = [case["case"]] + [cell(rates[name], ".2f") for name in reversed(sides)]
        if trefoil:
            cells.append(cell([ours / theirs for ours, theirs
                               in zip(rates["trefoil"], rates["llama.cpp"])], ".2f"))
        print("| " + " | ".join(cells) + " |", flush=True)
        for run in range(arguments.runs):
            table.append([case["case"], run] + [f"{rates[name][run]:.4f}" for name in sides])
    if arguments.csv:
        with open(arguments.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["test", "run"] + [f"{name} tokens/s" for name in sides])
            writer.writerows(table)
    if trefoil:
        trefoil.close()


if __name__ == "__main__":
    try:
        main()
    except (PeerError, OSError) as error:
        sys.exit(f"llama_cpp.py: {error}")
