// The order of chunks in blocks of 256 elements whose code byte j of each 32 holds elements j, j + 32,
// j + 64 and j + 96 of a half block: a chunk is 8 bytes of codes, four times 8 elements.
#define CHUNK 32

uint chunk_half(uint chunk) { return chunk % 8 / 4; }
uint chunk_byte(uint chunk) { return chunk % 4 * 8; }

uint chunk_element(uint chunk, uint four) {
    return chunk / 8 * 256 + chunk_half(chunk) * 128 + four / 2 * 32 + chunk_byte(chunk) + four % 2 * 4;
}

// Where a run of 16 lies: its half block, which of the four elements of each byte, its first byte.
uint run_half(uint run) { return run % 16 / 8; }
uint run_quarter(uint run) { return run % 8 / 2; }
uint run_byte(uint run) { return run % 2 * 16; }
