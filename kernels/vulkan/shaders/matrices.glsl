// Cooperative matrices: products of halves with sums in f32, spread over a subgroup. All are EDGE x EDGE.
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#pragma use_vulkan_memory_model

#define Left(edge) coopmat<float16_t, gl_ScopeSubgroup, edge, edge, gl_MatrixUseA>
#define Right(edge) coopmat<float16_t, gl_ScopeSubgroup, edge, edge, gl_MatrixUseB>
#define Sum(edge) coopmat<float, gl_ScopeSubgroup, edge, edge, gl_MatrixUseAccumulator>
#define ROWS_FIRST gl_CooperativeMatrixLayoutRowMajor
#define COLUMNS_FIRST gl_CooperativeMatrixLayoutColumnMajor
