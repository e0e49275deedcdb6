#include <stdio.h>

int main(int argc, char **argv)
{
    (void)argv;
    printf("{\"changed\": true, \"compiled\": \"yes\", \"argc\": %d}\n", argc);
    return 0;
}
