// A tile of 64 outputs by 64 rows of x in f32, made by 256 threads; tiles of 32 columns of both go
// through shared memory. Included after the push constants, for decode_run may name `tables`.
const uint TILE = 64, DEPTH = 32;
// Column by column, one element wider than the tile: neighbouring threads hit different banks.
shared float w_tile[DEPTH][TILE + 1];
shared float x_tile[DEPTH][TILE + 1];

// A thread's 4 x 4 sums, of rows thread / 16 + 16 * i and outputs thread % 16 + 16 * j of the tile.
float sum[4][4];

void clear_sums() {
    [[unroll]] for (int i = 0; i < 4; i++) [[unroll]] for (int j = 0; j < 4; j++) sum[i][j] = 0.0;
}

// Columns k.. of the matrix's rows first_o.., zeros past the last column, the last row past that.
void load_w_tile(uint64_t matrix, uint first_o, uint rows, uint cols, uint k) {
    for (uint piece = gl_LocalInvocationIndex; piece < TILE * (DEPTH / RUN); piece += 256) {
        uint o = piece / (DEPTH / RUN), part = piece % (DEPTH / RUN);
        vec4 w[RUN / 4];
        uint element = k + part * RUN;
        if (element < cols) {
            decode_run(row_address(matrix, min(first_o + o, rows - 1), cols), element / RUN, w);
        } else {
            [[unroll]] for (uint i = 0; i < RUN / 4; i++) w[i] = vec4(0.0);
        }
        [[unroll]] for (uint i = 0; i < RUN / 4; i++)
            [[unroll]] for (uint j = 0; j < 4; j++) w_tile[part * RUN + i * 4 + j][o] = w[i][j];
    }
}

// Pieces of four columns of x, `TILE * (DEPTH / 4)` of them: a piece's row in the tile, its first column.
uint piece_row(uint piece) { return piece / (DEPTH / 4); }
uint piece_column(uint piece) { return piece % (DEPTH / 4) * 4; }

void put_x_tile(uint piece, vec4 v) {
    [[unroll]] for (uint j = 0; j < 4; j++) x_tile[piece_column(piece) + j][piece_row(piece)] = v[j];
}

// Adds the products of both tiles, column after column.
void add_products() {
    uint tx = gl_LocalInvocationIndex % 16, ty = gl_LocalInvocationIndex / 16;
    for (uint d = 0; d < DEPTH; d++) {
        float a[4], b[4];
        [[unroll]] for (uint i = 0; i < 4; i++) a[i] = x_tile[d][ty + 16 * i];
        [[unroll]] for (uint j = 0; j < 4; j++) b[j] = w_tile[d][tx + 16 * j];
        [[unroll]] for (uint i = 0; i < 4; i++)
            [[unroll]] for (uint j = 0; j < 4; j++) sum[i][j] = fma(a[i], b[j], sum[i][j]);
    }
}
