// Sums over a workgroup; every thread calls them and gets the result.
shared float partial_sums[128];
shared uint partial_counts[128];

// In an order that depends on the subgroup's size alone.
float sum_all(float value) {
    float part = subgroupAdd(value);
    if (subgroupElect()) partial_sums[gl_SubgroupID] = part;
    barrier();
    float total = 0.0;
    for (uint i = 0; i < gl_NumSubgroups; i++) total += partial_sums[i];
    barrier();
    return total;
}

// The sum, and that of the threads before this one.
uint count_all(uint value, out uint before) {
    before = subgroupExclusiveAdd(value);
    uint part = subgroupAdd(value);
    if (subgroupElect()) partial_counts[gl_SubgroupID] = part;
    barrier();
    uint total = 0;
    for (uint i = 0; i < gl_NumSubgroups; i++) {
        if (i == gl_SubgroupID) before += total;
        total += partial_counts[i];
    }
    barrier();
    return total;
}
