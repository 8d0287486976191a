#include "check.h"

int failed_checks = 0;

int main(void) {
    test_arena();
    test_base();
    test_parallel();
    test_products();
    test_igemm();
    test_byte_gradients();
    test_inverse();
    test_kernels();
    test_scaling();
    printf("%d failed\n", failed_checks);
    return failed_checks != 0;
}
