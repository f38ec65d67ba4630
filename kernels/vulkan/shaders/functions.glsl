// Scalar functions between linears, numbered as the host numbers them.
#define SILU 0
#define GELU_TANH 1
#define GELU_ERF 2

// tanh: near zero a quotient of polynomials (its continued fraction, ended after five terms), for the
// other form loses digits there; beyond, no exp of a large argument, which would be infinite.
float bounded_tanh(float x) {
    float a = abs(x), square = x * x;
    if (a < 0.75)
        return x * ((square + 105.0) * square + 945.0) / ((15.0 * square + 420.0) * square + 945.0);
    float e = exp(-2.0 * a);
    return sign(x) * ((1.0 - e) / (1.0 + e));
}

// The error function to about 1e-7: its series where that converges well, a rational form with an
// exponential beyond (Abramowitz and Stegun 7.1.5 and 7.1.26).
float error_function(float x) {
    float a = abs(x);
    if (a < 1.5) {
        float square = x * x, term = x, sum = x;
        for (int n = 1; n < 20; n++) {
            term *= -square / float(n);
            sum += term / float(2 * n + 1);
        }
        return sum * 1.1283791670955126;
    }
    float t = 1.0 / (1.0 + 0.3275911 * a);
    float tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741
               + t * (-1.453152027 + t * 1.061405429))));
    return sign(x) * (1.0 - tail * exp(-a * a));
}

float nonlinearity(uint function, float x) {
    switch (function) {
    case SILU: return x / (1.0 + exp(-x));
    case GELU_TANH: return 0.5 * x * (1.0 + bounded_tanh(0.7978845608028654 * fma(0.044715 * x * x, x, x)));
    default: return 0.5 * x * (1.0 + error_function(x * 0.7071067811865476));
    }
}
